"""Ops of the user's own: how their axes are written, that they are kept as they are, and that they are cut right."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import own_ops
import pytest
import torch
from equality import Case, difference, plan_for
from op_example import Example, normal
from ranks import Ranks
from test_axes import Call, check
from test_readme import README
from torch import Tensor, fx, nn

import autoplan
from autoplan.errors import ModelError, TraceError
from autoplan.graph.axes import spec_of, strategies
from autoplan.graph.axes.notation import axes_text
from autoplan.graph.axes.spec import _RULES
from autoplan.graph.axes.written import written_rule
from autoplan.graph.trace import trace
from autoplan.graph.unruled import unruled_ops
from autoplan.hardware import Cluster
from autoplan.plan import Job, Precision
from autoplan.search import search


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(_RULES)
    own_ops.register()
    yield
    _RULES.clear()
    _RULES.update(before)


def batch(samples: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(samples, 6, 16, generator=generator, dtype=torch.float64) for name in ("x", "y")
    }


def model() -> nn.Module:
    torch.manual_seed(0)
    return own_ops.OwnModel().double()


def call(shapes: list[tuple[int, ...]], result: Any, *rest: Any) -> fx.Node:
    """The node of a call of ``head_norm``'s kind on tensors of these shapes."""
    graph = fx.Graph()
    sources = []
    for index, shape in enumerate(shapes):
        sources.append(graph.placeholder(f"x{index}"))
        sources[-1].meta["val"] = torch.empty(shape)
    node = graph.call_function(torch.ops.own_ops.head_norm.default, (*sources, *rest))
    node.meta["val"] = torch.empty(result) if isinstance(result, tuple) else [torch.empty(s) for s in result]
    return node


def test_the_axes_of_a_call_are_read_from_the_text() -> None:
    rule = written_rule("... (h e!), (h e!) -> ... (h e!)", {"num_heads": "h"})
    spec = rule(call([(4, 1, 24), (24,)], (4, 1, 24), 8))
    assert spec is not None
    assert spec.inputs == ((("lead2",), (), ("h", "e")), (("h", "e"),))
    assert spec.output == (("lead2",), (), ("h", "e"))
    assert spec.sizes == {"lead2": 4, "h": 8, "e": 3}
    assert spec.fixed == {"e"}
    assert spec.counts == {"num_heads": "h"}


def test_sums_broadcasts_scalars_and_several_results() -> None:
    spec = written_rule("b i, 1 i, () -> b o, ()", {})(call([(4, 6), (1, 6), ()], [(4, 5), ()]))
    assert spec is not None
    assert spec.inputs == ((("b",), ("i",)), ((), ("i",)), ())
    assert spec.pieces == ((("b",), ("o",)), ())
    spec = written_rule("b i, b i -> b i", {})(call([(4, 6), (1, 6)], (4, 6)))
    assert spec is not None and spec.inputs[1] == ((), ("i",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b s", "inputs -> results"),
        ("b (s -> b", "a closing bracket"),
        ("b s) -> b", "brackets"),
        ("b ... -> b", "... first"),
        ("b s? -> b s", "where it says"),
    ],
)
def test_text_that_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said.replace("(", r"\(").replace("...", r"\.\.\.")):
        written_rule(text, {})


def test_text_that_does_not_fit_the_call_is_refused() -> None:
    node = call([(4, 6), (6,)], (4, 6), 2)
    for text, said in [
        ("b i -> b i", "1 tensor arguments"),
        ("b i, i -> b i, i", "2 results"),
        ("b i, b i -> b i", "2 dims"),
        ("b i, o -> b (i o)", "a dim of 36"),
        ("b (h e), i -> b (h e)", "use counts"),
    ]:
        with pytest.raises(ModelError) as error:
            written_rule(text, {})(node)
        assert said in str(error.value)
    with pytest.raises(ModelError, match="axes of"):
        written_rule("b i, i -> b i", {"num_heads": "h"})


def test_what_is_no_op_cannot_be_registered() -> None:
    with pytest.raises(ModelError, match="pass the op itself"):
        autoplan.register_axes(torch.sin, "b -> b")


def test_a_function_is_kept_with_its_own_backward() -> None:
    """torch.export alone would keep its forward ops, and their gradient."""
    plain = model()
    graph = trace(plain, batch(), precision=Precision.FP64)
    (kind,) = (kind for kind, block in graph.kinds.items() if block.path)
    assert "own_ops.Bounded" in [op.target for op in graph.kinds[kind].ops]
    program = autoplan.parallelize(plain, batch(), precision="fp64")
    program(program.shard(batch())).backward()
    own_ops_gradients = program.full_gradients()
    program.close()
    reference = model()
    reference(**batch()).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert difference(own_ops_gradients, expected) < 1e-12


def test_a_function_beside_a_buffer_that_changes_is_kept_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gate = nn.BatchNorm1d(6), nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.nn.functional.mse_loss(own_ops.bounded(self.norm(x), self.gate, 1.0)[0], y)

    graph = trace(Both().double(), batch(), precision=Precision.FP64)
    assert "own_ops.Bounded" in [op.target for block in graph.kinds.values() for op in block.ops]


def test_a_checkpoint_of_torch_is_traced_through() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(16, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = torch.utils.checkpoint.checkpoint(self.line, x, use_reentrant=False)  # type: ignore[assignment]
            return torch.nn.functional.mse_loss(x, y)

    graph = trace(Checkpointed().double(), batch(), precision=Precision.FP64)
    assert "aten.linear.default" in [op.target for block in graph.kinds.values() for op in block.ops]


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, config: dict[str, float]) -> Tensor:
        return x * config["scale"]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def test_a_function_may_take_a_dict() -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(16, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            once = Scaled.apply(self.line(x), {"scale": 2.0})
            return torch.nn.functional.mse_loss(Scaled.apply(once, {"scale": 3.0}), y)

    graph = trace(Uses().double(), batch(), precision=Precision.FP64)
    calls = [n for block in graph.kinds.values() for n in block.graph.nodes if "Scaled" in str(n.target)]
    assert [call.args[1]["scale"] for call in calls] == [2.0, 3.0]


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class Told(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Any) -> Tensor:
        return how(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@pytest.mark.parametrize(
    ("apply", "remedy"),
    [
        (lambda x: InPlace.apply(x * 1), "return a new tensor"),
        (lambda x: Told.apply(x, torch.sin), "torch.library.custom_op"),
    ],
    ids=["in-place", "callable"],
)
def test_a_function_that_cannot_be_kept_is_refused_with_a_way_round(apply: Any, remedy: str) -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(16, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.nn.functional.mse_loss(apply(self.line(x)), y)

    with pytest.raises(TraceError) as error:
        trace(Uses().double(), batch(), precision=Precision.FP64)
    assert remedy in error.value.remedy


def test_ops_without_a_rule_are_listed_with_their_cost_until_they_have_one() -> None:
    graph = trace(model(), batch(), precision=Precision.FP64)
    listed = {op.op: op for op in unruled_ops(graph)}
    assert set(listed) == {"own_ops.head_norm.default", "own_ops.Bounded"}
    norm = listed["own_ops.head_norm.default"]
    assert (norm.module_path, norm.count) == ("h.0", 3)
    (block,) = (block for block in graph.kinds.values() if block.path)
    op = next(op for op in block.ops if op.target == norm.op)
    assert norm.bytes == 3 * (op.bytes_forward + op.bytes_backward) > 0
    job = Job(global_batch=4, precision=Precision.FP64)
    result = search(lambda _: graph, job, Cluster.of("cpu-gloo-4"), pin={"tp": 4, "micro_batch": 4})
    assert {op.op for op in result.unruled} == set(listed)
    assert result.to_json()["unruled"][0].keys() == {"op", "module_path", "count", "flops", "bytes"}


def test_registered_ops_are_cut(registered: None) -> None:
    graph = trace(model(), batch(), precision=Precision.FP64)
    assert unruled_ops(graph) == []
    (block,) = (block for block in graph.kinds.values() if block.path)
    ops = {op.target: op for op in block.ops}
    norm = ops["own_ops.head_norm.default"]
    assert axes_text(block, norm) == "lead2 lead1 (h e!), (h e!) -> lead2 lead1 (h e!)"
    names = {strategy.name for strategy in strategies(block, norm, 2)}
    assert names == {"R", "cut h", "cut lead1", "cut lead2"}
    spec = spec_of(block, ops["own_ops.Bounded"])
    assert spec is not None and spec.pieces == ((("b",), ("s",), ("f",)), (("f",),))


def test_the_search_cuts_them_where_that_pays(registered: None) -> None:
    graph = trace(own_ops.OwnModel(4096, 32), {n: torch.empty(1, 4096, 4096, device="meta") for n in "xy"})
    job = Job(global_batch=1, precision=Precision.FP32)
    plan = search(lambda _: graph, job, Cluster.of("h100-sxm", gpus=8), pin={"tp": 8}).plan
    assert plan is not None
    (layouts,) = (layouts for kind, layouts in plan.layouts.items() if kind.startswith("OwnBlock"))
    assert (layouts["head_norm"], layouts["bounded"]) == ("cut h", "cut f")


def test_the_op_of_the_readme_is_cut_right() -> None:
    before = dict(_RULES)
    place: dict[str, Any] = {}
    source = re.search(r"# own_op\.py\n(.*?)```", README, re.DOTALL)
    assert source is not None
    exec(source[1], place)
    example = Example(torch.ops.shop.scale_heads.default, (normal(4, 2, 24), normal(8), 8))
    for call in (Call(example, graded) for graded in itertools.product((True, False), repeat=2)):
        for degree in (2, 4):
            found = strategies(call.block, call.op, degree)
            for strategy in found:
                check(call, strategy, degree)
            if degree == 2:
                assert {s.name for s in found} == {"R", "cut b", "cut s", "cut h"}
    _RULES.clear()
    _RULES.update(before)


def _train(seed: int | None) -> float:
    """The largest relative difference of gradients and parameters to one process's, after one step."""
    own_ops.register()
    plain = model()
    if seed is None:
        program = autoplan.parallelize(plain, batch(), pin={"tp": 2}, precision="fp64")
        assert program.plan.tp == 2
    else:
        graph = trace(plain, batch(), precision=Precision.FP64)
        plan = plan_for(graph, Case(tp=2, micro_batch=4, num_micro_batches=1, seed=seed))
        program = autoplan.parallelize(plain, batch(), plan=plan, precision="fp64")
    program.step(program.shard(batch()))
    gradients, parameters = program.full_gradients(), program.full_state_dict()
    reference = model()
    optimizer = torch.optim.AdamW(reference.parameters())
    reference(**batch()).backward()
    optimizer.step()
    worst = difference(gradients, {n: p.grad for n, p in reference.named_parameters() if p.grad is not None})
    return max(worst, difference(parameters, {n: p.detach() for n, p in reference.named_parameters()}))


@pytest.mark.parametrize("seed", [None, 1, 2, 3], ids=["searched", "random-1", "random-2", "random-3"])
def test_two_ranks_train_as_one(two: Ranks, seed: int | None) -> None:
    assert max(two(_train, seed)) < 1e-10
