"""One configuration event by event: the schedule's own order in place of the closed form of its bubble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.pipeline import Simulation, StageSeconds, compiled, simulate
from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.mixed_times import step_times_on
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.stages import stage_layers
from autoplan.cost.transformer.step_times import end_passes, layer_passes
from autoplan.cost.transformer.work_times import Passes

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster

__all__ = ["simulated_step"]


def simulated_step(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: AnyCluster,
    schedule: str,
) -> Simulation:
    """Simulate ``schedule`` with the passes that ``step_times`` prices.

    Layers lie evenly on a stage's chunks; the embedding is on the first chunk, the loss on the last. What
    micro-batches wait for sends is in their passes; what comes once a step follows each rank's last pass.

    Raises:
        InputError: the schedule cannot run so many chunks or micro-batches.
    """
    passes = [layer_passes(shape, c, formats, software, only) for only in cluster.types]
    ends = [end_passes(shape, c, formats, software, only) for only in cluster.types]
    parts = step_times_on(shape, c, formats, software, cluster, schedule).parts
    pp, vpp, m = int(c.pp), int(c.vpp), int(c.micro_batches)
    program = compiled(schedule, pp, vpp, m)
    ranks = [program.order.rank_of[index] for index in range(pp * vpp)]
    types = [cluster.type_of(rank, pp) for rank in ranks]
    chunks = [
        _chunk(shape, c, *passes[of], rank, index)
        for index, (rank, of) in enumerate(zip(ranks, types, strict=True))
    ]
    chunks[0] = chunks[0] + ends[types[0]][0]
    chunks[-1] = chunks[-1] + ends[types[-1]][1]
    waited = _number(parts["pp_comm"]) / m / (2 * vpp) if pp > 1 else 0.0
    once = sum(_number(parts[name]) for name in ("dp_comm", "optimizer", "overhead"))
    return simulate(
        program,
        StageSeconds(
            forward_s=[_number(p.forward_s) + waited for p in chunks],
            backward_s=[_number(p.backward_s) + waited for p in chunks],
            weight_s=[_number(p.weight_s) for p in chunks],
            send_s=[0.0] * (pp * vpp - 1),
            tail_s=[once] * pp,
        ),
    )


def _chunk(
    shape: Transformer, c: Configuration, dense: Passes, mixture: Passes | None, rank: int, index: int
) -> Passes:
    """The layers of chunk ``index`` in depth, which ``rank`` holds."""
    held = stage_layers(shape, c)
    place = "first" if rank == 0 else "last" if rank == int(c.pp) - 1 else "middle"
    layers = _number(getattr(held, place)) / int(c.vpp)
    if mixture is None:
        return dense * layers
    before = index * _number(shape.layers) / (int(c.pp) * int(c.vpp))
    plain = min(max(_number(shape.dense_layers) - before, 0.0), layers)
    return dense * plain + mixture * (layers - plain)


def _number(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])
