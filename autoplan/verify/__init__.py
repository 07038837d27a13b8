"""A second opinion on every plan that a search returns, derived again from what the plan, the model's graph and
the hardware profile say. Nothing of ``cost`` or ``search`` is imported here: a mistake there is not made again."""

from autoplan.verify.plan import verify_plan
from autoplan.verify.verdict import Claim, Finding, Verdict

__all__ = ["Claim", "Finding", "Verdict", "verify_plan"]
