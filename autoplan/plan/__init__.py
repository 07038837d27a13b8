"""The answer as data: ``Job`` is the question, ``Plan`` the decision."""

from autoplan.plan.io import plan_json, plan_schema, read_plan, write_plan
from autoplan.plan.job import Job
from autoplan.plan.plan import Plan, StagePlan
from autoplan.plan.policies import check_policies
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule, ScheduleNeeds, ranks_of_stages
from autoplan.plan.validate import validate_plan
from autoplan.precision import Precision

__all__ = [
    "SCHEDULE_NEEDS",
    "Job",
    "Plan",
    "Precision",
    "Schedule",
    "ScheduleNeeds",
    "StagePlan",
    "check_policies",
    "plan_json",
    "plan_schema",
    "ranks_of_stages",
    "read_plan",
    "validate_plan",
    "write_plan",
]
