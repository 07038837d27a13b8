"""What a choice costs: seconds of ops, collectives and schedules, and bytes on the worst rank."""

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import Estimate, MemoryEstimate, StageEstimate
from autoplan.cost.price import price

__all__ = ["Degrees", "Estimate", "MemoryEstimate", "StageEstimate", "price"]
