"""From an ``nn.Module`` and example inputs to a clean ``torch.fx`` graph.

``torch.export`` lifts parameters into inputs and leaves behind assertions, no-op casts and
grad-mode regions. Here parameters become ``get_attr`` nodes again, the regions are inlined, and the
rest is dropped, so that what remains is: placeholders for tensors, ``get_attr``, ATen calls, and an
output that is a flat tuple. Every node keeps its fake value in ``meta["val"]``.

A buffer that forward changes (BatchNorm's statistics) is changed by a ``copy_`` at the end of the graph;
its ``get_attr`` and the ``copy_`` carry ``meta["updated"]``.
"""

from __future__ import annotations

import contextlib
import operator
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributions import Distribution
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from autoplan.errors import AutoplanError, TraceError
from autoplan.graph.faithful import check_numbers, faithful, keep_no_grad
from autoplan.graph.functional import make_functional
from autoplan.graph.functions import kept_functions
from autoplan.graph.layer_drop import NoLayerDrop
from autoplan.graph.long_loops import NoLongLoops
from autoplan.graph.substitute import substitute

__all__ = ["CleanGraph", "as_exported", "capturing", "export_clean", "not_captured"]

_aten = torch.ops.aten
_DROPPED = (
    _aten._assert_tensor_metadata.default,
    _aten._assert_async.msg,
    _aten._assert_async.default,
    _aten._assert_scalar.default,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
)
_BATCH_NORMS = {
    _aten.batch_norm.default: 5,
    _aten.instance_norm.default: 5,
}  # where it says: use the batch's statistics
_MOVES = (_aten.transpose.int, _aten.permute.default)
_CASTS = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten._to_copy.default)


@dataclass(slots=True)
class CleanGraph:
    """A graph and what its free names stand for.

    ``inputs`` gives, for each tensor among the flat example inputs, the name of its placeholder.
    """

    graph: fx.Graph
    inputs: list[str]
    parameters: dict[str, str]
    buffers: dict[str, str]


def export_clean(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: FakeTensorMode,
    path: str,
    root: str = "",
    outputs: Sequence[int] | None = None,
) -> CleanGraph:
    """Export ``module`` on fake ``args`` and ``kwargs``.

    ``path`` is its name in error messages, which leave ``root`` out of the names of its tensors. ``outputs``
    are the places of the flat output that are wanted; None wants all.

    Raises:
        TraceError: torch.export cannot capture the module, or it changes one of its inputs in place.
    """
    try:
        with (
            mode,
            capturing(path or type(module).__name__),
            kept_functions(),
            _use_lazy_graph_module(True),  # nobody runs the code that torch would write of each graph
        ):
            program = torch.export.export(module, args, kwargs, strict=False)
        make_functional(program.graph)
        with mode:
            if any(
                _mutates(part.graph)
                for part in program.graph_module.modules()
                if isinstance(part, fx.GraphModule)
            ):
                keep_no_grad(program.graph_module)
                program = program.run_decompositions({})
    except AutoplanError:
        raise
    except Exception as error:
        raise not_captured(path or type(module).__name__, error) from error
    if written := program.graph_signature.parameters_to_mutate:
        raise TraceError(
            path,
            sorted(name.removeprefix(root) for name in written.values()),
            "no parameter that forward changes",
            "change parameters between optimizer steps, or compute the weight anew (torch.nn.utils.parametrize)",
        )
    if changed := program.graph_signature.user_inputs_to_mutate:
        raise TraceError(
            path,
            sorted(changed.values()),
            "no input that forward changes in place",
            "let forward change a copy: x = x.clone()",
        )
    clean = _clean(program, path, root, outputs)
    check_numbers(clean.graph, path)
    return clean


@contextlib.contextmanager
def capturing(path: str) -> Iterator[None]:
    """While forward runs on fake tensors: what it may not do raises TraceError, which names ``path``."""
    with faithful(path), NoLayerDrop(path), NoLongLoops(path), _unvalidated_distributions():
        yield


@contextlib.contextmanager
def as_exported() -> Iterator[None]:
    """While forward runs without being exported: it is told that it is, so that it keeps no fake tensors for later."""
    flags = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = flags


@contextlib.contextmanager
def _unvalidated_distributions() -> Iterator[None]:
    """Checks of a distribution's arguments look at their values, and change no result."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def not_captured(path: str, error: Exception) -> TraceError:
    """What to say when torch cannot run the module at ``path`` on fake tensors."""
    place = _source_line(error)
    where = f", at {place}" if place else ""
    if "Couldn't swap" in str(error):
        return TraceError(
            path,
            "a module that forward converts to another dtype or device",
            "parameters that forward leaves as they are",
            f"convert it once, before training, or cast its weight where it is used{where}",
        )
    return TraceError(
        path,
        _first_line(error),
        "a module that torch.export captures",
        f"make its shapes and its branches independent of data{where}",
    )


def _source_line(error: Exception) -> str:
    """``file:line: code`` of the innermost frame that is neither torch's nor ours."""
    own = Path(__file__).parent, Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in own):
            return f"{file.name}:{frame.lineno}: {frame.line or ''}"
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _mutates(graph: fx.Graph) -> bool:
    return any(
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and (node.target._schema.is_mutable or _keeps_statistics(node))
        for node in graph.nodes
    )


def _keeps_statistics(node: fx.Node) -> bool:
    """A norm that updates running statistics, of which its schema says nothing."""
    flag = _BATCH_NORMS.get(node.target)  # type: ignore[arg-type]
    return flag is not None and node.args[3] is not None and bool(node.args[flag])


def _clean(
    program: torch.export.ExportedProgram, path: str, root: str, wanted: Sequence[int] | None
) -> CleanGraph:
    source = program.graph
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    result = CleanGraph(graph, [], {}, {})
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in source.nodes:
        if node.op == "placeholder" and specs[node.name].kind is InputKind.CONSTANT_TENSOR:
            full = f"{path}.{str(specs[node.name].target).removeprefix(root)}"
            env[node] = _constant(program.constants[str(specs[node.name].target)], node, graph, full)
        elif node.op == "placeholder":
            _place(node, specs[node.name], program, env, result)
    _copy_body(source, program.graph_module, graph, env)
    returned = next(node for node in source.nodes if node.op == "output").args[0]
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    given = [node for node, kind in zip(returned, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]  # type: ignore[arg-type]
    outputs = given if wanted is None else [given[place] for place in wanted]
    _write_back(program, {n.name: env[n] for n in returned if isinstance(n, fx.Node)}, result)  # type: ignore[union-attr]
    output = graph.output(tuple(env[node] for node in outputs))
    output.meta["val"] = tuple(node.meta["val"] for node in outputs)  # type: ignore[union-attr]
    substitute(graph)
    graph.eliminate_dead_code()
    _drop_unused(graph, result)
    return result


def _write_back(program: torch.export.ExportedProgram, made: dict[str, fx.Node], result: CleanGraph) -> None:
    """Store each changed buffer's new value in it. Forward reads a copy, which backward may still need after that."""
    holders = {name: node for node in result.graph.nodes if (name := result.buffers.get(node.name))}
    for value, buffer in program.graph_signature.buffers_to_mutate.items():
        holder = holders[buffer]
        with result.graph.inserting_after(holder):
            read = result.graph.call_function(_aten.clone.default, (holder,))
        read.meta.update(made[value].meta, val=holder.meta["val"])
        holder.replace_all_uses_with(read, lambda user, read=read: user is not read)
        stored = result.graph.call_function(_aten.copy_.default, (holder, made[value]))
        stored.meta.update(made[value].meta, val=holder.meta["val"])
        holder.meta["updated"] = stored.meta["updated"] = True


def _place(
    node: fx.Node,
    spec: Any,
    program: torch.export.ExportedProgram,
    env: dict[fx.Node, Any],
    result: CleanGraph,
) -> None:
    graph = result.graph
    value = node.meta.get("val")
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        new = graph.create_node("get_attr", spec.target, name=node.name)
        table = result.parameters if spec.kind is InputKind.PARAMETER else result.buffers
        table[new.name] = spec.target
        if spec.kind is InputKind.PARAMETER:
            node.meta["parameter"] = True
            node.meta["trainable"] = program.state_dict[spec.target].requires_grad
    elif isinstance(value, torch.Tensor):
        new = graph.create_node("placeholder", node.name, name=node.name)
        result.inputs.append(new.name)
    else:
        env[node] = None  # a constant argument: export has already specialised on it
        return
    new.meta.update(node.meta)
    env[node] = new


def _constant(value: Any, node: fx.Node, graph: fx.Graph, name: str) -> fx.Node:
    """A number that forward made into a tensor is made so again; any other tensor must belong to the model."""
    if value.numel() != 1 or isinstance(value, FakeTensor):
        raise TraceError(
            name,
            f"a constant tensor of shape {tuple(value.shape)}",
            "only parameters, buffers, and what forward makes from its inputs",
            f"register it: self.register_buffer({name.rpartition('.')[2]!r}, tensor, persistent=False); "
            "if forward draws it anew with numpy (SpecAugment does), switch that off",
        )
    arguments = (list(value.shape), value.item())
    made = graph.call_function(_aten.full.default, arguments, {"dtype": value.dtype, "device": value.device})
    made.meta.update(node.meta)
    return made


def _copy_body(source: fx.Graph, owner: fx.GraphModule, graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    for node in source.nodes:
        if node.op != "call_function" or node.target in _DROPPED:
            continue
        if _is_grad_region(node):
            _inline(node, owner, graph, env)
        elif _is_identity(node):
            env[node] = env[node.args[0]]
        elif node.target is operator.getitem and isinstance(env[node.args[0]], tuple | list):
            env[node] = env[node.args[0]][node.args[1]]
        else:
            new = graph.node_copy(node, lambda n: env[n])
            new.meta["val"] = node.meta.get("val")
            if node.target is _aten.view.default and getattr(node.args[0], "target", None) in _MOVES:
                # the kernel that runs may lay out its result in another way than the fake one
                new.target = _aten.reshape.default
            env[node] = new


def _is_grad_region(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", str(node.target)) in (
        "wrap_with_set_grad_enabled",
        "wrap_with_autocast",
    )


def _is_identity(node: fx.Node) -> bool:
    """A cast to what the tensor already is."""
    if node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.dtype == after.dtype
    )


def _inline(node: fx.Node, owner: fx.GraphModule, graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    """Inline a grad-mode (or disabled autocast) region.

    A no-grad region is kept faithful by detaching its results; that is what the region means to autograd.
    """
    position = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    inner: fx.GraphModule = getattr(owner, str(node.args[position].target))  # type: ignore[union-attr]
    enabled = node.args[0] if "set_grad" in getattr(node.target, "__name__", "") else True
    arguments = node.args[position + 1 :]
    placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
    inner_env: dict[fx.Node, Any] = {p: env[a] for p, a in zip(placeholders, arguments, strict=True)}  # type: ignore[index]
    _copy_body(inner.graph, inner, graph, inner_env)
    results = next(n for n in inner.graph.nodes if n.op == "output").args[0]
    outputs = []
    for result in results:  # type: ignore[union-attr]
        value = inner_env[result]
        if not enabled and _is_differentiable(value):
            detached = graph.call_function(_aten.detach.default, (value,))
            detached.meta.update(value.meta)
            value = detached
        outputs.append(value)
    env[node] = tuple(outputs)


def _is_differentiable(node: fx.Node) -> bool:
    pending, seen = [node], set()
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        value = here.meta.get("val")
        if here.op == "placeholder" and isinstance(value, torch.Tensor) and value.is_floating_point():
            return True
        if here.meta.get("trainable"):
            return True
        pending.extend(here.all_input_nodes)
    return False


def _drop_unused(graph: fx.Graph, result: CleanGraph) -> None:
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr") and not node.users:
            graph.erase_node(node)
    present = {node.name for node in graph.nodes}
    for table in (result.parameters, result.buffers):
        for name in [name for name in table if name not in present]:
            del table[name]
