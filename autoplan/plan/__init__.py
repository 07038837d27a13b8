"""The answer as data: ``Job`` is the question, ``Plan`` the decision."""

from autoplan.plan.job import Job, Precision
from autoplan.plan.plan import MESH_AXES, Plan, Schedule, StagePlan

__all__ = ["MESH_AXES", "Job", "Plan", "Precision", "Schedule", "StagePlan"]
