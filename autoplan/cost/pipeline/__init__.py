"""Pipeline schedules: their exact order, the seconds of a step, and what is kept meanwhile.

program = compiled("1f1b", pp=4, vpp=1, micro_batches=16)     once for a shape; kept
run = simulate(program, StageSeconds(forward_s=…, backward_s=…, send_s=…))
run.step_s, run.parts.bubble_s, …                             one plan in detail
step_times_s(program, StageSeconds(…))                        many plans of that shape at once
"""

from autoplan.cost.pipeline.activations import (
    MemoryCurve,
    memory_curves,
    peak_activation_bytes,
    peak_in_flight,
)
from autoplan.cost.pipeline.chrome_trace import step_trace
from autoplan.cost.pipeline.compiler import compiled
from autoplan.cost.pipeline.events import Event, step_events
from autoplan.cost.pipeline.order import Action, Order, Pass
from autoplan.cost.pipeline.program import Program
from autoplan.cost.pipeline.schedules import SCHEDULES, pipeline_order, schedule_rule
from autoplan.cost.pipeline.shared_cores import relieved
from autoplan.cost.pipeline.simulation import RankParts, Simulation, StageSeconds, simulate, step_times_s
from autoplan.cost.pipeline.streams import (
    LayerSeconds,
    StreamOp,
    StreamRun,
    pass_ops,
    run_streams,
    together_s,
)

__all__ = [
    "SCHEDULES",
    "Action",
    "Event",
    "LayerSeconds",
    "MemoryCurve",
    "Order",
    "Pass",
    "Program",
    "RankParts",
    "Simulation",
    "StageSeconds",
    "StreamOp",
    "StreamRun",
    "compiled",
    "memory_curves",
    "pass_ops",
    "peak_activation_bytes",
    "peak_in_flight",
    "pipeline_order",
    "relieved",
    "run_streams",
    "schedule_rule",
    "simulate",
    "step_events",
    "step_times_s",
    "step_trace",
    "together_s",
]
