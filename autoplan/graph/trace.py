"""``trace``: a model and an example batch in, a ModelGraph out. No weights, no GPU, one trace per distinct block."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.errors import ModelError, TraceError
from autoplan.graph.analysis import analyse
from autoplan.graph.bands import Band
from autoplan.graph.called_again import count_calls, with_called_again
from autoplan.graph.causal import free_bands, use_bands
from autoplan.graph.chain import Chain, Link, cut_chain
from autoplan.graph.collection import collection_held
from autoplan.graph.export import CleanGraph, as_exported, capturing, export_clean, not_captured
from autoplan.graph.faithful import check_hooks
from autoplan.graph.fingerprint import fingerprint
from autoplan.graph.flows import differentiable
from autoplan.graph.fold import Repeat, find_repeats
from autoplan.graph.gpu_kernels import DeviceKind
from autoplan.graph.ir import Block, ModelGraph, Unit
from autoplan.graph.loops import loops_as_operators
from autoplan.graph.loss_weight import find_weight, mean_nodes
from autoplan.graph.other_batches import Recorded, how_samples_meet
from autoplan.graph.own_parameters import check_trainable, tied, unused
from autoplan.graph.routing import Routing
from autoplan.graph.separable import meetings
from autoplan.graph.skeleton import BlockCall, Skeleton, blocks_inline, build_skeleton
from autoplan.precision import Precision

__all__ = ["flatten_batch", "trace"]

Loss = Callable[[Any, Any], Tensor]
_TELLING = 11
"""So many samples that their dim is told from others by its size: seldom does another one divide by it."""


@loops_as_operators()
@collection_held()
def trace(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    precision: Precision | None = None,
    name: str = "",
    *,
    device: DeviceKind = "cuda",
    routing: Routing | None = None,
    fold: bool = True,
) -> ModelGraph:
    """Capture the training step of ``model`` on one micro-batch.

    Args:
        model: any module, on any device, the meta device included; it is neither run nor changed.
        batch: one micro-batch: a tensor, a tuple, or a dict of forward's keyword arguments. Only shapes
            and dtypes are read; dim 0 of every tensor is the batch.
        loss: ``fn(output, batch) -> scalar``; None means ``output.loss``, ``output["loss"]``, or the
            output itself if it is a scalar.
        precision: the compute dtype that parameters and floating inputs are cast to; None keeps theirs.
        name: what reports call the model; default its class.
        device: whose kernels are counted (``gpu_kernels`` says where a CPU's differ); the graph is the same.
        routing: the load of routed experts; None is perfect balance.
        fold: False traces every copy of a block anew, as one unit, ``model``: slow, and to compare with.

    Raises:
        TraceError: the model or one of its blocks cannot be captured.
        ModelError: the batch or the loss is not of the form above.
    """
    check_hooks(model)
    dtype = None if precision is None else getattr(torch, precision.compute_dtype)
    names, tensors, spec = flatten_batch(batch)
    repeats = find_repeats(model) if fold else []
    skeleton, fakes, outer, counts = _export_skeleton(model, repeats, tensors, spec, loss, dtype)
    more = with_called_again(model, repeats, counts) if fold else repeats
    if len(more) > len(repeats):
        skeleton, fakes, outer, _ = _export_skeleton(model, more, tensors, spec, loss, dtype)
    _rename_inputs(outer, names)
    described = functools.partial(analyse, mode=skeleton.mode, device=device, routing=routing)
    builder = _Builder(outer, skeleton, model, described)
    shapes = {
        n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in zip(names, fakes, strict=True)
    }
    try:
        graph = builder.build(name or type(model).__name__, int(tensors[0].shape[0]), shapes)
    except RuntimeError as error:  # torch cannot run an op of the graph on its own
        raise not_captured(type(model).__name__, error) from error
    if not graph.meetings:
        run = functools.partial(_run_with, skeleton, tensors, spec, loss, dtype)
        reason = how_samples_meet(run, graph.micro_batch)
        graph.meetings = (reason,) if reason is not None else ()
    elif graph.micro_batch == 1 or not (builder.sure or graph.micro_batch == _TELLING):
        more = pytree.tree_map(lambda t: t.new_empty((_TELLING, *t.shape[1:]), device="meta"), batch)
        with contextlib.suppress(TraceError):  # it takes no such batch: what was found stands
            graph.meetings = trace(
                model, more, loss, precision, device=device, routing=routing, fold=fold
            ).meetings
    return graph


def _export_skeleton(
    model: nn.Module,
    repeats: list[Repeat],
    tensors: list[Tensor],
    spec: pytree.TreeSpec,
    loss: Loss | None,
    dtype: torch.dtype | None,
) -> tuple[Skeleton, tuple[Tensor, ...], CleanGraph, Counter[str]]:
    """The model with stubs for ``repeats``, its inputs, its graph, and how often its modules are called."""
    skeleton = build_skeleton(model, repeats, dtype)
    step = _Step(skeleton.module, spec, loss)
    skeleton.reset()
    fakes = tuple(_fake_input(tensor, dtype, skeleton.mode) for tensor in tensors)
    with count_calls(skeleton.module) as counts:
        outer = export_clean(step, fakes, {}, skeleton.mode, type(model).__name__, root="model.")
    return skeleton, fakes, outer, counts


def _run_with(
    skeleton: Skeleton,
    tensors: list[Tensor],
    spec: pytree.TreeSpec,
    loss: Loss | None,
    dtype: torch.dtype | None,
    samples: int,
) -> Recorded:
    """What forward does with ``samples`` samples, op by op."""
    fakes = [_fake_input(t[:1].expand(samples, *t.shape[1:]), dtype, skeleton.mode) for t in tensors]
    step = _Step(skeleton.module, spec, loss)
    record = Recorded(fakes)
    with skeleton.mode, capturing("model"), as_exported(), blocks_inline(), record:
        step(*fakes)
    return record


def flatten_batch(batch: Any) -> tuple[list[str], list[Tensor], pytree.TreeSpec]:
    """The tensors of a batch, a name for each (its key, or its position), and how to put them back.

    Raises:
        ModelError: no tensor, or tensors whose dim 0 differ.
    """
    paths, spec = pytree.tree_flatten_with_path(batch)
    names, tensors = [], []
    for path, leaf in paths:
        label = "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or "input"
        if not isinstance(leaf, Tensor):
            raise ModelError(
                f"batch.{label}",
                leaf,
                "a tensor",
                "leave out what is not a tensor, or bind it with functools.partial",
            )
        names.append(label if label.isidentifier() else f"input_{label}")
        tensors.append(leaf)
    if not tensors:
        raise ModelError("batch", batch, "at least one tensor", "pass an example of the global batch")
    rows = {
        label: tensor.shape[0] if tensor.dim() else None for label, tensor in zip(names, tensors, strict=True)
    }
    first = next((count for count in rows.values() if count is not None), "the number of samples")
    for label, tensor in zip(names, tensors, strict=True):
        if rows[label] != first:
            like = f", as in batch.{names[0]}" if label != names[0] else ""
            raise ModelError(
                f"batch.{label}", tuple(tensor.shape), f"dim 0 of {first}{like}",
                "give every tensor of the batch one row per sample",
            )  # fmt: skip
    return names, tensors, spec


class _Step(nn.Module):
    """Model and loss as one module of flat tensor inputs."""

    def __init__(self, model: nn.Module, spec: pytree.TreeSpec, loss: Loss | None) -> None:
        super().__init__()
        self.model = model
        self._spec = spec
        self._loss = loss

    def forward(self, *leaves: Tensor) -> Tensor:
        batch = pytree.tree_unflatten(list(leaves), self._spec)
        if isinstance(batch, dict):
            output = self.model(**batch)
        elif isinstance(batch, tuple | list):
            output = self.model(*batch)
        else:
            output = self.model(batch)
        value = self._loss(output, batch) if self._loss is not None else _default_loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                "loss", shown, "a scalar tensor", "pass loss=fn(output, batch) that returns the mean loss"
            )
        return value


def _default_loss(output: Any) -> Any:
    if isinstance(output, dict) and "loss" in output:
        return output["loss"]
    return getattr(output, "loss", output)


def _fake_input(tensor: Tensor, dtype: torch.dtype | None, mode: FakeTensorMode) -> Tensor:
    to = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    with mode:
        return torch.empty(tensor.shape, dtype=to, device="cpu")


def _rename_inputs(outer: CleanGraph, names: list[str]) -> None:
    """Let the placeholders of the outer graph stand for the batch's own names.

    Their node names stay: one of the batch's might be that of an op.
    """
    wanted = dict(zip(outer.inputs, names, strict=True))
    for node in outer.graph.nodes:
        if node.op == "placeholder":
            node.target = wanted[node.name]
    outer.parameters = {n: t.removeprefix("model.") for n, t in outer.parameters.items()}
    outer.buffers = {n: t.removeprefix("model.") for n, t in outer.buffers.items()}
    for node in outer.graph.nodes:
        if node.op == "get_attr":
            node.target = str(node.target).removeprefix("model.")


@dataclass(slots=True)
class _Kind:
    name: str
    clean: CleanGraph
    kept: list[int]
    footprint: str


class _Builder:
    """Assembles the ModelGraph from the outer graph, its chain, and one export per distinct call."""

    def __init__(
        self, outer: CleanGraph, skeleton: Skeleton, model: nn.Module, analyse: Callable[..., Block]
    ) -> None:
        self.outer = outer
        self.skeleton = skeleton
        self.model = model
        self.analyse = analyse
        self.chain: Chain = cut_chain(outer.graph, torch.ops.autoplan.block.default)
        self.bands = {f"free.{name}": band for name, band in free_bands(self.chain.free).items()}
        self.sure = True  # of the ops in which samples meet
        self.called: Counter[str] = Counter()
        self.flows: dict[Any, set[int]] = {}  # of each kind, the inputs that a gradient may flow into
        self.differentiable: set[str] = set()  # and the chain's values that it may flow into

    def _key(self, link: Link) -> Any:
        """Calls with one key are calls of one kind."""
        assert link.call is not None
        bands = [self.bands.get(read) for read in link.reads]
        return self.skeleton.call(link.call).signature(), tuple(band and band.digest for band in bands)

    def build(self, name: str, micro_batch: int, shapes: dict[str, Any]) -> ModelGraph:
        kinds: dict[str, Block] = {}
        keys: dict[Any, _Kind] = {}
        units: list[Unit] = []
        for link in self.chain.links:
            if link.call is not None:
                self._export(link, keys)
        self._find_flows(keys)
        for link in self.chain.links:
            unit, block = self._call(link, keys, kinds) if link.call is not None else self._outer(link)
            kinds.setdefault(unit.kind, block)
            units.append(unit)
        means, weight, reasons = self._loss()
        self._prune_free(units, weight)
        free = self.analyse("free", "", self.chain.free, {}, self._buffers(self.chain.free), set())
        own = dict(self.model.named_parameters(remove_duplicate=False))
        graph = ModelGraph(
            name,
            "",
            micro_batch,
            kinds,
            tuple(units),
            free,
            self.chain.loss,
            weight,
            tied(own, units, kinds),
            shapes,
            unused=unused(own, units, kinds),
        )
        found, self.sure = meetings(graph, means)
        graph.meetings = (*reasons, *found)
        check_trainable(graph, self.model)
        graph.fingerprint = fingerprint(graph)
        return graph

    def _call(self, link: Link, keys: dict[Any, _Kind], kinds: dict[str, Block]) -> tuple[Unit, Block]:
        assert link.call is not None
        call, key = self.skeleton.call(link.call), self._key(link)
        kind = keys[key]
        reads = tuple(link.reads[index] for index in kind.kept)
        block = kinds.get(kind.name)
        if block is None:
            clean = kind.clean
            inputs = {clean.inputs[i] for i in kind.kept if i in self.flows[key]}
            block = self.analyse(kind.name, call.path, clean.graph, clean.parameters, clean.buffers, inputs)
        self.called[call.path] += 1
        turn = self.called[call.path]
        if turn > 1 and block.updates:
            raise TraceError(
                call.path,
                f"a block called {turn} times that changes its buffer {block.buffers[block.updates[0]]}",
                "a block that changes its buffers to be called once",
                "call it once, or freeze these buffers: call eval() on their module",
            )
        name = call.path if turn == 1 else f"{call.path}@{turn}"
        return Unit(name, kind.name, call.path, reads, tuple(link.writes)), block

    def _export(self, link: Link, keys: dict[Any, _Kind]) -> None:
        """Capture the kind of the block that ``link`` calls, unless an earlier call was of that kind."""
        assert link.call is not None
        call, key = self.skeleton.call(link.call), self._key(link)
        if key not in keys:
            bands = [self.bands.get(read) for read in link.reads]
            clean = self._capture(call.block, call, bands)
            present = {n.name for n in clean.graph.nodes if n.op == "placeholder"}
            kept = [i for i, name in enumerate(clean.inputs) if name in present]
            keys[key] = _Kind(f"{type(call.block).__name__}_{len(keys)}", clean, kept, call.footprint)
            self._check_copies(call, bands, keys[key])
        if call.footprint != keys[key].footprint:
            raise _unlike(call.path, "the number that they are told")

    def _find_flows(self, keys: dict[Any, _Kind]) -> None:
        """Follow gradients through the chain, until no further value of it is found to have one."""
        reached: dict[Any, set[str]] = {}
        known = -1
        while known < len(self.differentiable):
            known = len(self.differentiable)
            for link in self.chain.links:
                if link.call is None:
                    assert link.graph is not None
                    self.differentiable |= differentiable(link.graph, self.differentiable) & set(link.writes)
                    continue
                key = self._key(link)
                clean, flows = keys[key].clean, self.flows.setdefault(key, set())
                flows |= {index for index, read in enumerate(link.reads) if read in self.differentiable}
                given = key, frozenset(flows)
                if given not in reached:
                    reached[given] = differentiable(clean.graph, {clean.inputs[index] for index in flows})
                made = next(n for n in clean.graph.nodes if n.op == "output").args[0]
                self.differentiable |= {
                    name for name, node in zip(link.writes, made, strict=True) if node.name in reached[given]
                }

    def _capture(self, block: nn.Module, call: BlockCall, bands: list[Band | None]) -> CleanGraph:
        args, kwargs = call.arguments(_fresh(call.inputs, self.skeleton.mode))
        clean = export_clean(block, args, kwargs, self.skeleton.mode, call.path, outputs=call.made)
        use_bands(
            clean.graph, {n: band for n, band in zip(clean.inputs, bands, strict=True) if band is not None}
        )
        return clean

    def _check_copies(self, call: BlockCall, bands: list[Band | None], kind: _Kind) -> None:
        """Other copies must trace to what the first did, or an attribute left out of the signature matters."""
        expected = _text(kind.clean.graph)
        for module in self.skeleton.other_copies(call.repeat):
            if _text(self._capture(module, call, bands).graph) != expected:
                raise _unlike(call.path, ", ".join(sorted(self.skeleton.counted[call.repeat])))

    def _outer(self, link: Link) -> tuple[Unit, Block]:
        assert link.graph is not None
        first, last = self.chain.links[0], self.chain.links[-1]
        name = (
            "prologue"
            if link is first
            else "epilogue"
            if link is last
            else f"between.{link.position // 2 - 1}"
        )
        if first is last:
            name = "model"
        use_bands(link.graph, {r.removeprefix("free."): self.bands[r] for r in link.reads if r in self.bands})
        present = {n.name for n in link.graph.nodes if n.op == "placeholder"}
        link.reads[:] = [r for r in link.reads if r not in self.bands or r.removeprefix("free.") in present]
        inputs = {n.name for n in link.graph.nodes if n.op == "placeholder" and n.name in self.differentiable}
        parameters = {n.name: str(n.target) for n in link.graph.nodes if n.meta.get("parameter")}
        block = self.analyse(name, "", link.graph, parameters, self._buffers(link.graph), inputs)
        return Unit(name, name, "", tuple(link.reads), tuple(link.writes)), block

    def _buffers(self, graph: fx.Graph) -> dict[str, str]:
        return {
            n.name: str(n.target) for n in graph.nodes if n.op == "get_attr" and not n.meta.get("parameter")
        }

    def _loss(self) -> tuple[list[fx.Node], str | None, tuple[str, ...]]:
        """The nodes that take the loss's means, what weighs it, and why its batch may not be cut, if so."""
        last = self.chain.links[-1]
        if last.graph is None:
            return [], None, (f"loss: {self.chain.loss} comes from a repeated block",)
        output = next(n for n in last.graph.nodes if n.op == "output").args[0]
        loss = next(n for n in output if n.name == self.chain.loss)  # type: ignore[union-attr]
        try:
            return mean_nodes(loss), self._weight(loss, last), ()
        except TraceError as error:
            return mean_nodes(loss), None, (f"{error.field}: {error.value}",)

    def _weight(self, loss: fx.Node, last: Link) -> str | None:
        found = find_weight(loss)
        if found is None:
            return None
        target, ignored = found
        placeholder = _through_views(target)
        reads = dict(
            zip((n.name for n in last.graph.nodes if n.op == "placeholder"), last.reads, strict=True)  # type: ignore[union-attr]
        )
        source = reads.get(placeholder.name)
        if source is None or not source.startswith(("free.", "batch.")):
            raise TraceError(
                "loss",
                f"cross-entropy targets that the model makes itself ({placeholder.name})",
                "targets that come from the batch alone",
                "pass the targets in the batch",
            )
        return self._count(source, ignored)

    def _count(self, source: str, ignored: int) -> str:
        """Add ``(target != ignored).sum()`` to the free graph; return its chain name."""
        graph = self.chain.free
        where, name = source.split(".", 1)
        output = next(n for n in graph.nodes if n.op == "output")
        node = next((n for n in graph.nodes if (n.target if where == "batch" else n.name) == name), None)
        with graph.inserting_before(next(iter(graph.nodes))):
            if node is None:
                original = next(n for n in self.outer.graph.nodes if n.target == name)
                node = graph.create_node("placeholder", name, name=original.name)
                node.meta.update(original.meta)
        with graph.inserting_before(output):
            valid = graph.call_function(torch.ops.aten.ne.Scalar, (node, ignored))
            count = graph.create_node(
                "call_function", torch.ops.aten.sum.default, (valid,), name="target_count"
            )
        with self.skeleton.mode:
            valid.meta["val"] = torch.ne(node.meta["val"], ignored)
            count.meta["val"] = valid.meta["val"].sum()
        output.args = ((*output.args[0], count),)  # type: ignore[misc]
        return f"free.{count.name}"

    def _prune_free(self, units: list[Unit], weight: str | None) -> None:
        """Leave in the free graph only what units still read, now that masks may have become ``is_causal``."""
        wanted = {name for unit in units for name in unit.arguments} | {weight}
        output = next(n for n in self.chain.free.nodes if n.op == "output")
        output.args = (tuple(n for n in output.args[0] if f"free.{n.name}" in wanted),)  # type: ignore[union-attr]
        self.chain.free.eliminate_dead_code()
        for node in list(self.chain.free.nodes):
            if node.op in ("placeholder", "get_attr") and not node.users:
                self.chain.free.erase_node(node)


def _unlike(path: str, by: str) -> TraceError:
    return TraceError(
        path,
        f"copies whose graphs differ{f' by {by}' if by else ''}",
        "copies of one block that differ in parameters only",
        "make what differs a plain attribute of the block other than its number, so that it is seen "
        "as a different block",
    )


def _through_views(node: fx.Node) -> fx.Node:
    while (
        node.op == "call_function"
        and len(node.all_input_nodes) == 1
        and node.meta["val"].numel() == node.all_input_nodes[0].meta["val"].numel()
    ):
        node = node.all_input_nodes[0]
    return node


def _fresh(tensors: list[Tensor], mode: FakeTensorMode) -> list[Tensor]:
    """New fakes, one for each: export would take one object passed twice for one input."""
    with mode:
        return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu") for t in tensors]


def _text(graph: fx.Graph) -> list[str]:
    """A graph as lines that do not depend on the names of its ops."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    number = {node: f"%{index}" for index, node in enumerate(calls)}
    return [
        str((n.target, fx.map_arg((n.args, n.kwargs), lambda source: number.get(source, source.name))))
        for n in calls
    ]
