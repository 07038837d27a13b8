"""The program at work."""

from autoplan.runtime.parallelize import parallelize
from autoplan.runtime.program import Program

__all__ = ["Program", "parallelize"]
