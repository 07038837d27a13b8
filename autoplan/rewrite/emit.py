"""A plan as a Python script that trains without autoplan: the same graphs, collectives and wrapping, written out.

The parts of a script, in order: the plan's degrees, the functions that change layouts (this package's own source),
one class for each distinct block, the chain, and a training loop in plain PyTorch (``emit_main``).
"""

from __future__ import annotations

import re

import torch

from autoplan.errors import PlanError
from autoplan.graph.chain import extract
from autoplan.graph.ir import Block, ModelGraph
from autoplan.graph.layout import Layout
from autoplan.plan import Plan, Precision
from autoplan.rewrite.emit_code import GROUP, Code, class_names, forward_code
from autoplan.rewrite.emit_main import MAIN, main_text
from autoplan.rewrite.link import linked
from autoplan.rewrite.local_graph import LocalBlock, localise
from autoplan.rewrite.random_calls import draw_in
from autoplan.rewrite.random_kernels import sample_draws, unit_draws
from autoplan.rewrite.unit_module import attach, local_parameter, put_on

__all__ = ["emit_script"]


def emit_script(graph: ModelGraph, plan: Plan, build: str, title: str) -> str:
    """The script.

    Args:
        graph: the model, traced at the plan's micro-batch.
        plan: what to run.
        build: source of ``build_model()``, which returns (model, example batch of global size).
        title: a line that says what it trains.

    Raises:
        PlanError: the plan or the model needs something that a script cannot hold yet.
    """
    _check(graph, plan)
    blocks = {kind: _block_code(graph, block, plan) for kind, block in graph.kinds.items()}
    free_names = sorted({n for unit in graph.units for n in unit.arguments if n.startswith("free.")})
    free = _free_code(graph, free_names)
    weight = _free_code(graph, [graph.weight]) if graph.weight is not None else None
    codes = [*blocks.values(), free, *([weight] if weight else [])]
    calls = {call.__qualname__: call for code in codes for call in code.calls}
    drawing = [sample_draws, unit_draws] if graph.draws else []
    imports, definitions = linked([attach, local_parameter, *calls.values(), *drawing])
    text = "\n".join([*imports, *definitions, *_IMPORTS, MAIN])
    names = class_names(blocks, ["Free", "Targets", *re.findall(r"\w+", text)])
    imports = sorted({*imports, *(line for code in codes for line in code.imports), *_IMPORTS})
    parts = [
        _header(title, plan),
        "\n".join(_sorted_imports(imports)),
        _constants(plan),
        build.strip(),
        _banner("Layouts, and the collectives that change them"),
        *definitions,
        _banner("The blocks, in the shapes of one rank"),
        *(_class(graph, kind, names[kind], plan, code) for kind, code in blocks.items()),
        _free_class("Free", free, "What every unit may read: masks, positions, shifted labels."),
        *([_free_class("Targets", weight, "How many targets of a micro-batch count.")] if weight else []),
        _chain(graph, plan, names, free_names, weight is not None),
        _banner("Training"),
        main_text(graph.draws).strip(),
    ]
    script = "\n\n\n".join(part for part in parts if part) + "\n"
    _check_own_ops(script)
    return script


_IMPORTS = (
    "import argparse",
    "import os",
    "import warnings",
    "from pathlib import Path",
    "import torch",
    "import torch.distributed as dist",
    "import torch.utils._pytree as pytree",
    "from torch import Tensor, nn",
    "from torch.distributed.device_mesh import init_device_mesh",
    "from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard",
    "from torch.utils.checkpoint import checkpoint",
)


def _check(graph: ModelGraph, plan: Plan) -> None:
    for name in ("pp", "cp", "ep"):
        if (degree := getattr(plan, name)) > 1:
            raise PlanError(
                name,
                degree,
                "1 in a script: pipelines, context and expert parallelism are not written out yet",
                "run it with autoplan.parallelize, or search again with this degree held at 1",
            )
    for stage in plan.stages:
        for unit, name in stage.policies.items():
            raise PlanError(
                f"policies.{unit}",
                name,
                "units that keep all or recompute all, in a script: policies by op are not written out yet",
                "run it with autoplan.parallelize, or search again with --recompute none or full",
            )
    again = {name for stage in plan.stages for name in stage.recompute}
    for unit in graph.units:
        if unit.name in again and graph.kinds[unit.kind].updates:
            raise PlanError(
                "recompute",
                unit.name,
                "no recomputation of a unit that changes buffers, in a script",
                "search again without recomputation",
            )


def _check_own_ops(script: str) -> None:
    found = re.search(r"torch\.ops\.autoplan\w*\.\w+", script) or re.search(
        r"'autoplan\w*\.\w+\.\w+'", script
    )
    if found:
        raise PlanError(
            "model",
            found[0],
            "no op that only autoplan has, in a script",
            "run the plan with autoplan.parallelize",
        )


def _block_code(graph: ModelGraph, block: Block, plan: Plan) -> Code:
    layouts = plan.layouts.get(block.kind, {})
    local = LocalBlock(block, layouts, Layout.parse(plan.boundary), plan.tp, GROUP)
    losses = [op.name for op in block.ops if "cross_entropy_loss" in op.target]
    holds_loss = any(graph.loss in unit.results for unit in graph.units if unit.kind == block.kind)
    summed = losses[-1] if graph.weight is not None and holds_loss else None
    if plan.tp > 1 or summed or any(op.random for op in block.ops):
        made = localise(local, summed)
    else:
        made = torch.fx.Graph()
        made.output(made.graph_copy(block.graph, {}))
    put_on(made, torch.device("cpu"))
    return forward_code(made, {op.name: op.module_path for op in block.ops})


def _free_code(graph: ModelGraph, names: list[str]) -> Code:
    source = graph.free.graph
    nodes = {f"free.{node.name}": node for node in source.nodes}
    made = extract(source, [nodes[name] for name in names], [], keep=set(source.nodes))
    draw_in(made)
    put_on(made, torch.device("cpu"))
    return forward_code(made)


def _class(graph: ModelGraph, kind: str, name: str, plan: Plan, code: Code) -> str:
    block = graph.kinds[kind]
    layouts = plan.layouts.get(kind, {})
    units = [unit.name for unit in graph.units if unit.kind == kind]
    parameters = {relative: layouts.get(value, "R") for value, relative in block.parameters.items()}
    changed = {block.buffers[value] for value in block.updates}
    draws = [f"    draws = {any(op.random for op in block.ops)}"] if graph.draws else []
    shown = ", ".join(units) if len(units) < 4 else f"{units[0]} to {units[-1]}, {len(units)} times"
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{shown}."""',
            "",
            f"    parameters_and_layouts = {_table(parameters)}",
            f"    buffer_names = {sorted(block.buffers.values())!r}",
            f"    changed_buffers = {sorted(changed)!r}",
            *draws,
            "",
            code.text,
        ]
    )


def _table(entries: dict[str, str]) -> str:
    if not entries:
        return "{}"
    lines = "".join(f"        {key!r}: {value!r},\n" for key, value in entries.items())
    return "{\n" + lines + "    }"


def _free_class(name: str, code: Code | None, doc: str) -> str:
    assert code is not None
    reads = re.findall(r"self\.([A-Za-z_][\w.]*)", code.text)
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{doc}"""',
            "",
            f"    buffer_names = {sorted(set(reads))!r}",
            "",
            code.text,
        ]
    )


def _chain(graph: ModelGraph, plan: Plan, names: dict[str, str], free_names: list[str], weighed: bool) -> str:
    again = {name for stage in plan.stages for name in stage.recompute}
    rows = "".join(
        f"    ({unit.name!r}, {names[unit.kind]}, {unit.path!r}, {unit.arguments!r}, {unit.results!r}, "
        f"{unit.name in again}),\n"
        for unit in graph.units
    )
    return (
        "# name, class, path in the model, values read, values made, run again in backward\n"
        f"UNITS = [\n{rows}]\n"
        f"FREE_VALUES = {free_names!r}\n"
        f"LOSS = {graph.loss!r}\n"
        f"WEIGHED = {weighed}  # micro-batches count by their number of targets\n"
        f"BATCH = { ({name: dtype for name, (_, dtype) in graph.batch_inputs.items()})!r}"
    )


def _constants(plan: Plan) -> str:
    return "\n".join(
        [
            f"DP, FSDP, TP = {plan.dp}, {plan.fsdp}, {plan.tp}  # replicas, ranks that share one, ranks that share an op",
            f"ZERO = {plan.zero}  # what is sharded over FSDP: 1 optimizer, 2 gradients too, 3 parameters too",
            f"GLOBAL_BATCH, MICRO_BATCH, MICRO_BATCHES = {plan.global_batch}, {plan.micro_batch}, {plan.num_micro_batches}",
            f"MIXED_PRECISION = {plan.precision is Precision.BF16}",
            f"MASTER = torch.{plan.precision.master_dtype}",
            'DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")',
            'TP_GROUP = ""  # name of the process group of the tensor-parallel axis, set by main()',
        ]
    )


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
