"""The plan as tables of a script: its degrees, the chain of units, and how a pipeline is laid out and run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from autoplan.cost.pipeline import pipeline_order
from autoplan.graph.ir import ModelGraph
from autoplan.plan import Plan, Schedule
from autoplan.rewrite.stage_module import Wire, loss_wire, wires_into
from autoplan.runtime.pipeline import as_text

__all__ = ["chain_table", "constants", "free_names", "pipeline_tables", "tied_over_stages"]

_WIDTH = 110


def constants(plan: Plan, graph: ModelGraph, groups: Sequence[str]) -> str:
    """The plan's degrees; ``groups``: the mesh axes whose process groups graphs name."""
    lines = [
        f"PP, DP, FSDP, CP, TP = {plan.pp}, {plan.dp}, {plan.fsdp}, {plan.cp}, {plan.tp}"
        "  # ranks: pipeline, replicas, sharing one, sharing a sequence, sharing an op",
        f"REPLICAS, SHARDS = {plan.replicas}, {plan.shard_ranks}  # copies of the training state, ranks that share one",
    ]
    if plan.ep > 1:
        lines += [
            f"EP = {plan.ep}  # ranks that share out the experts",
            f"EXPERT_REPLICAS, EXPERT_SHARDS = {plan.expert_replicas}, {plan.expert_shard_ranks}  # as above, of experts' state",
        ]
    lines += [
        f"ZERO = {plan.zero}  # what is sharded: 1 optimizer, 2 gradients too, 3 parameters too",
        f"GLOBAL_BATCH, MICRO_BATCH, MICRO_BATCHES = {plan.global_batch}, {plan.micro_batch}, {plan.num_micro_batches}",
        f"MASTER = torch.{plan.precision.master_dtype}",
        'DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")',
    ]
    lines += [
        f'{axis.upper()}_GROUP = ""  # name of the process group of {axis}, set by main()' for axis in groups
    ]
    return "\n".join(lines)


def chain_table(graph: ModelGraph, plan: Plan, names: Mapping[str, str]) -> str:
    """The units in order; ``names``: the classes of kinds."""
    ways = {name: stage.way(name) for stage in plan.stages for name in stage.units}
    rows = "".join(
        f"    ({unit.name!r}, {names[unit.kind]}, {unit.path!r}, {unit.arguments!r}, {unit.results!r}, "
        f"{ways[unit.name]!r}),\n"
        for unit in graph.units
    )
    return (
        "# name, class, path in the model, values read, values made, what backward runs again\n"
        f"UNITS = [\n{rows}]\n"
        f"LOSS = {graph.loss!r}\n"
        f"BATCH = { ({name: dtype for name, (_, dtype) in graph.batch_inputs.items()})!r}"
    )


def free_names(graph: ModelGraph, units: Sequence[str]) -> list[str]:
    """The free values that some of ``units`` read."""
    wanted = set(units)
    return sorted(
        {n for unit in graph.units if unit.name in wanted for n in unit.arguments if n.startswith("free.")}
    )


def pipeline_tables(graph: ModelGraph, plan: Plan, free: Sequence[str]) -> str:
    """Stages, what passes between them, in what order ranks run them, and weights that live in several.

    ``free``: the class of each stage's free values.
    """
    rows, first = "", 0
    for stage, name in zip(plan.stages, free, strict=True):
        stop = first + len(stage.units)
        rows += f"    ({first}, {stop}, {name}, {free_names(graph, stage.units)!r}),\n"
        first = stop
    wires = [*(wires_into(graph, plan, place) for place in range(len(plan.stages))), [loss_wire(graph)]]
    lines = [
        "# first unit, the one after the last, class and names of what units may read besides",
        f"STAGES = [\n{rows}]",
        f"RANK_OF_STAGE = {list(plan.stage_ranks)!r}",
        "# what each stage reads, and what the last one gives: name, shape, dtype, whether it has a gradient",
        "WIRES = [\n" + "".join(f"    {_wires(row)},\n" for row in wires) + "]",
    ]
    if plan.schedule not in (Schedule.GPIPE, Schedule.ONE_F_ONE_B):
        order = pipeline_order(plan.schedule, plan.pp, plan.vpp, plan.num_micro_batches)
        lines += [
            f"# {plan.schedule.value}: what each rank runs, as stage, pass and micro-batch; F forward, B backward, "
            "I and W its",
            "# halves, for inputs and for weights; a pair joined by + is issued together",
            "ORDER = [\n" + "".join(f"{_wrapped(as_text(actions))},\n" for actions in order.ranks) + "]",
        ]
    if tied := tied_over_stages(graph, plan):
        lines += [
            "# weights that live in several stages: in which, in which unit, and under what name",
            "TIED = [\n" + "".join(f"    {homes!r},\n" for homes in tied) + "]",
        ]
    return "\n".join(lines)


def tied_over_stages(graph: ModelGraph, plan: Plan) -> list[list[tuple[int, str, str]]]:
    """For each weight that several stages have: the stage, a unit in it that reads it, its name there."""
    stage_of = {name: place for place, stage in enumerate(plan.stages) for name in stage.units}
    kinds = {unit.name: graph.kinds[unit.kind] for unit in graph.units}
    found = []
    for group in graph.tied:
        homes: dict[int, tuple[int, str, str]] = {}
        for unit, value in group:
            place = stage_of[unit]
            homes.setdefault(place, (place, unit, kinds[unit].parameters[value]))
        if len(homes) > 1:
            found.append([homes[place] for place in sorted(homes)])
    return found


def _wires(row: Sequence[Wire]) -> str:
    return repr([(wire.name, tuple(wire.shape), wire.dtype, wire.requires_grad) for wire in row])


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, _WIDTH - 10)
    if len(lines) == 1:
        return f"    {text!r}"
    return "    (\n" + "".join(f"        {line + ' '!r}\n" for line in lines) + "    )"
