"""The plan as a program: local graphs with their collectives, units, stages."""

from autoplan.rewrite.stage_module import StageModule, build_stage, free_module, inputs_of

__all__ = ["StageModule", "build_stage", "free_module", "inputs_of"]
