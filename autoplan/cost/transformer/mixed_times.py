"""Seconds of one configuration on a cluster of several types of device: each stage at its own devices' pace.

The pipeline and its bubble are as in ``step_times``, with t_s the seconds of a micro-batch on the devices of stage s. A
send takes as long as on the slower side, and what comes once a step as long as on the slowest type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.stages import stage_layers
from autoplan.cost.transformer.step_times import (
    STEP_FIXED_S,
    StepTimes,
    bubble_s,
    end_passes,
    layer_passes,
    once_parts,
    send_s,
    step_times,
)
from autoplan.cost.transformer.work_times import Passes

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster

__all__ = ["step_times_on"]


def step_times_on(
    shape: Transformer,
    configuration: Configuration,
    formats: Formats,
    software: Software,
    cluster: AnyCluster,
    schedule: str = "1f1b",
) -> StepTimes:
    """Price one configuration; layers lie as evenly as in ``step_times``, which this is for devices of one type."""
    c = configuration.as_arrays()
    if len(cluster.types) == 1:
        return step_times(shape, c, formats, software, cluster.types[0], schedule)
    held, pp = stage_layers(shape, c), int(c.pp[0])
    on = [cluster.type_of(stage, pp) for stage in range(pp)]
    priced = [
        (*layer_passes(shape, c, formats, software, only), *end_passes(shape, c, formats, software, only))
        for only in cluster.types
    ]

    def stage(index: int, of: int) -> Passes:
        dense, mixture, first, last = priced[of]
        place = "first" if index == 0 else "last" if index == pp - 1 else "middle"
        layers, of_dense = getattr(held, place), getattr(held, f"{place}_dense")
        passes = dense * of_dense
        passes = passes + mixture * (layers - of_dense) if mixture is not None else passes
        return passes + {"first": first, "last": last, "middle": Passes()}[place]

    stages = [stage(index, of) for index, of in enumerate(on)]
    slowest_s = np.maximum.reduce([passes.total_s for passes in stages])
    busiest = max(stages, key=lambda passes: float(np.max(passes.total_s)))
    whole_s = priced[on[0]][2].total_s + priced[on[-1]][3].total_s
    whole_s = whole_s + sum(
        _layers_s(shape, *priced[of][:2]) * _share(held, s, pp) for s, of in enumerate(on)
    )
    parts: dict[str, Any] = {name: c.micro_batches * s for name, s in busiest.by_cause().items()}
    sends = [send_s(shape, c, software, only) for only in cluster.types]
    steady, fill = (np.maximum.reduce(list(each)) for each in zip(*sends, strict=True))
    parts["pp_comm"] = c.micro_batches * steady + fill
    parts["bubble"] = bubble_s(whole_s, slowest_s, busiest, c, schedule)
    once = [
        once_parts(shape, c, stage(0, of), formats, software, only) for of, only in enumerate(cluster.types)
    ]
    parts |= max(once, key=lambda found: float(np.max(sum(found.values()))))
    parts["overhead"] = STEP_FIXED_S + 0.0 * parts["optimizer"]
    return StepTimes(sum(parts.values()), parts)


def _layers_s(shape: Transformer, dense: Passes, mixture: Passes | None) -> Any:
    """All layers of the model on devices of one type."""
    routed = shape.mixture_layers
    whole = dense.total_s * (shape.layers - routed)
    return whole if mixture is None else whole + mixture.total_s * routed


def _share(held: Any, stage: int, stages: int) -> Any:
    """Of all layers, those of one stage."""
    inner = held.middle * (stages - 2)
    mine = held.first if stage == 0 else held.last if stage == stages - 1 else held.middle
    return mine / (held.first + held.last + inner)
