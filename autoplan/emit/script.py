"""A plan as a Python script that trains without autoplan: the same graphs, collectives and wrapping, written out.

The parts of a script, in order: the plan's degrees, the functions that change layouts and the like (this package's own
source, by way of ``link``), one class for each distinct block, the chain, and a training loop in plain PyTorch
(``template``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from autoplan.emit.blocks import block_class, block_code, free_class, free_code
from autoplan.emit.code import Code, class_names
from autoplan.emit.link import linked
from autoplan.emit.tables import chain_table, constants, free_names, pipeline_tables, tied_over_stages
from autoplan.emit.template import imports, training
from autoplan.errors import PlanError
from autoplan.graph.cut import cut_graph
from autoplan.graph.expert_cut import cut_experts
from autoplan.graph.ir import ModelGraph
from autoplan.graph.layout import Layout
from autoplan.plan import SCHEDULE_NEEDS, Plan, Precision, Schedule, check_policies
from autoplan.rewrite.host_copies import Copies, fetch_ahead
from autoplan.rewrite.keeping import Keeping
from autoplan.rewrite.random_kernels import sample_draws, unit_draws
from autoplan.rewrite.replicas import Replicas, groups_of
from autoplan.rewrite.stage_module import GradientTimes
from autoplan.rewrite.unit_module import attach, local_parameter, run_again
from autoplan.runtime.parallelize import check_model
from autoplan.runtime.pipeline import HalvedStage, Stage, first, in_order

__all__ = ["emit_script"]


def emit_script(graph: ModelGraph, plan: Plan, build: str, title: str, classes: Sequence[type] = ()) -> str:
    """The script.

    Args:
        graph: the model, traced at the plan's micro-batch.
        plan: what to run.
        build: source of ``build_model()``, which returns (model, example batch of global size).
        title: a line that says what it trains.
        classes: those of this package that ``build`` needs.

    Raises:
        PlanError: the plan is not for this model, or the model needs something that a script cannot hold.
    """
    _check(graph, plan)
    here = cut_graph(graph, plan.cp_layouts, Layout.parse(plan.cp_boundary), plan.cp, plan.cp_order)
    here = cut_experts(here, plan.ep)
    check_policies(here, plan)
    features = _features(here, plan)
    blocks = {kind: block_code(here, block, plan) for kind, block in here.kinds.items()}
    free, free_of_stage = _free_classes(here, plan)
    if graph.weight is not None:
        free["Targets"] = free_code(graph, [graph.weight]), "How many targets of a micro-batch count."
    codes = [*(made.code for made in blocks.values()), *(code for code, _ in free.values())]
    roots = [(root.__module__, root.__qualname__) for root in (*classes, *_roots(features))]
    imported, definitions = linked(dict.fromkeys([*roots, *(call for code in codes for call in code.calls)]))
    end = training(features)
    text = "\n".join([*imported, *definitions, *imports(features), build, end])
    names = class_names(blocks, [*free, *re.findall(r"\w+", text)])
    lines = {*imported, *(line for code in codes for line in code.imports), *imports(features)}
    parts = [
        _header(title, plan),
        "\n".join(_sorted_imports(sorted(lines))),
        constants(plan, here, [axis for axis in ("tp", "cp", "ep") if axis in features]),
        build.strip(),
        _banner(_FUNCTIONS),
        *definitions,
        _banner("The blocks, in the shapes of one rank"),
        *(block_class(here, kind, names[kind], plan, made) for kind, made in blocks.items()),
        *(free_class(name, code, doc) for name, (code, doc) in free.items()),
        _tables(here, plan, names, free_of_stage),
        _banner("Training"),
        end,
    ]
    return _operators_renamed("\n\n\n".join(part for part in parts if part) + "\n")


def _check(graph: ModelGraph, plan: Plan) -> None:
    check_model(plan, graph)
    if (plan.tp > 1 and not plan.layouts) or (plan.cp > 1 and not plan.cp_layouts):
        raise PlanError(
            "layouts",
            {},
            "how ops are cut among ranks, in a plan to be written out",
            "search with these degrees (--tp, --cp), and write out what is found",
        )


_FUNCTIONS = "What the rest calls: layouts, the collectives that change them, and more"
_FREE = "What units may read besides: masks, positions, shifted labels."


def _features(graph: ModelGraph, plan: Plan) -> set[str]:
    """What ``template`` asks for."""
    mixed = plan.precision is Precision.BF16
    found = {
        "again": any(stage.recompute for stage in plan.stages),
        "policies": any(stage.policies for stage in plan.stages),
        "ep": plan.ep > 1,
        "cp": plan.cp > 1,
        "tp": plan.tp > 1,
        "sharded": not plan.keeps_whole,
        "replicas": plan.keeps_whole and plan.replicas > 1,
        "bf16": mixed,
        "mesh": plan.world_size > 1 or mixed,
        "pp": plan.pp > 1,
        "draws": graph.draws,
        "weighed": graph.weight is not None,
    }
    if plan.pp > 1:
        known = {Schedule.ONE_F_ONE_B: "1f1b", Schedule.GPIPE: "gpipe"}
        found[known.get(plan.schedule, "order")] = True
        found["halves"] = SCHEDULE_NEEDS[plan.schedule].halves
        found["tied"] = bool(tied_over_stages(graph, plan))
    found["grouped"] = found["sharded"] or found["replicas"]
    found["unit"] = found["again"] or found["policies"] or found["ep"]
    return {name for name, there in found.items() if there}


def _roots(features: set[str]) -> list[Any]:
    """The functions of this package that the training part calls."""
    wanted = {
        "again": [run_again],
        "policies": [Keeping, Copies, fetch_ahead],
        "cp": [GradientTimes],
        "draws": [sample_draws, unit_draws],
        "replicas": [Replicas],
        "grouped": [groups_of],
        "pp": [first, HalvedStage if "halves" in features else Stage],
        "order": [in_order],
    }
    return [
        attach,
        local_parameter,
        *(root for name, roots in wanted.items() if name in features for root in roots),
    ]


def _free_classes(graph: ModelGraph, plan: Plan) -> tuple[dict[str, tuple[Code, str]], list[str]]:
    """(Classes of free values by name, that of each stage): stages that read the same have one."""
    by_names: dict[tuple[str, ...], str] = {}
    free, of_stage = {}, []
    for stage in plan.stages:
        wanted = tuple(free_names(graph, stage.units))
        if wanted not in by_names:
            by_names[wanted] = f"Free{len(by_names)}" if plan.pp > 1 else "Free"
            free[by_names[wanted]] = free_code(graph, list(wanted)), _FREE
        of_stage.append(by_names[wanted])
    return free, of_stage


def _tables(graph: ModelGraph, plan: Plan, names: dict[str, str], free_of_stage: list[str]) -> str:
    chain = chain_table(graph, plan, names)
    if plan.pp > 1:
        return chain + "\n\n" + pipeline_tables(graph, plan, free_of_stage)
    return chain + f"\nFREE_VALUES = {free_names(graph, plan.stages[0].units)!r}"


def _operators_renamed(script: str) -> str:
    """The script with its operators in a namespace of its own, apart from autoplan's should that be there too."""
    script = script.replace("torch.ops.autoplan.", "torch.ops.emitted.")
    return re.sub(r"(?<=['\"])autoplan(?=::\w|(?:\.\w+){2}['\"])", "emitted", script)


def _header(title: str, plan: Plan) -> str:
    return (
        f'"""{title}\n\n'
        f"Written by `autoplan emit` from plan {plan.hash()}; needs torch, not autoplan.\n\n"
        f"    torchrun --nproc-per-node {plan.world_size} THIS_FILE --steps 10\n"
        '"""\n\nfrom __future__ import annotations'
    )


def _banner(text: str) -> str:
    return f"# {'-' * 100}\n# {text}"


def _sorted_imports(lines: list[str]) -> list[str]:
    """Merged ``from`` imports, the standard library first."""
    plain = {line for line in lines if line.startswith("import ")}
    names: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("from "):
            module, _, what = line.removeprefix("from ").partition(" import ")
            names.setdefault(module, set()).update(part.strip() for part in what.split(","))
    made = [*plain, *(f"from {module} import {', '.join(sorted(what))}" for module, what in names.items())]
    ours = sorted(line for line in made if line.split()[1].split(".")[0] == "torch")
    rest = sorted(line for line in made if line.split()[1].split(".")[0] != "torch")
    return [*rest, "", *ours]
