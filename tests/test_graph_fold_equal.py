"""A folded graph is the unfolded one, written shorter: same ops, FLOPs, parameters, activations, kept bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accounted_models import MODELS, Made
from torch import Tensor, nn

from autoplan.graph.ir import Block, ModelGraph
from autoplan.graph.saved import saved_bytes
from autoplan.graph.trace import trace


class Layer(nn.Module):
    """A residual MLP that knows its number and its scale."""

    def __init__(self, number: int, scale: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.layer_idx, self.scale = number, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(x))))


class Nested(nn.Module):
    """Stages in a ModuleList, each with layers in another, the first stage of another depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(Layer(i) for i in range(depth)) for depth in (2, 3, 3))
        self.between = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for stage, between in zip(self.stages, self.between, strict=True):
            for layer in stage:  # type: ignore[union-attr]
                x = layer(x)
            x = between(x)
        return x


class Skips(nn.Module):
    """The second half of the layers adds what the first half made, as a U-Net does; a ReLU is kept by both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x = layer(x) if index < 3 else layer(x + made.pop())
            if index < 3:
                made.append(x)
        return x


def stacked(make: Callable[[], nn.Module]) -> Callable[[], Made]:
    def made() -> Made:
        torch.manual_seed(0)
        # a stem, so that all copies get an input with a gradient: what a kind's first copy saves otherwise is not seen
        return (
            nn.Sequential(nn.Linear(8, 8), make()),
            torch.randn(4, 6, 8),
            lambda out, batch: out.square().mean(),
        )

    return made


CASES: dict[str, Callable[[], Made]] = {
    "counted": stacked(lambda: nn.Sequential(*(Layer(i) for i in range(5)))),
    "alternating": stacked(lambda: nn.Sequential(*(Layer(i, 1.0 + i % 2) for i in range(6)))),
    "first two apart": stacked(lambda: nn.Sequential(*(Layer(i, 0.5 if i < 2 else 2.0) for i in range(5)))),
    "nested": stacked(Nested),
    "skips": stacked(Skips),
    "encoder and decoder": MODELS["bart-eager"],
    "relative positions": MODELS["t5-eager"],
    "local and global": MODELS["gemma2-eager"],
    "first dense, then routed": MODELS["deepseek_v3-eager"],
    "tied": MODELS["hand-bmm-tied"],
    "convolutions": MODELS["convolutions"],
    "built in": MODELS["built-in"],
    "routed": MODELS["built-in-experts"],
}


@pytest.mark.parametrize("case", CASES)
def test_folding_changes_no_account(case: str) -> None:
    model, batch, loss = CASES[case]()
    folded = trace(model, batch, loss, device="cpu")
    whole = trace(model, batch, loss, device="cpu", fold=False)
    assert [unit.name for unit in whole.units] == ["model"]
    assert len(folded.units) > len({unit.kind for unit in folded.units})
    got, expected = accounts(folded), accounts(whole)
    if case == "relative positions":
        # the first decoder layer hands on a bias of zeros; that no gradient flows through it shows only in the whole
        assert expected.pop("traffic") <= got.pop("traffic")
    assert got == expected


def accounts(graph: ModelGraph) -> dict[str, Any]:
    blocks = [graph.kinds[unit.kind] for unit in graph.units]
    # masks and tables are made once for all, or inside each block: only what a gradient flows through must agree
    trained = [(op, block) for block in blocks for op in block.ops if block.values[op.output].requires_grad]
    everything = [op for block in [*blocks, graph.free] for op in block.ops]
    return {
        "ops": Counter((op.target, *_shapes(block, op)) for op, block in trained),
        "gemms": Counter((op.kind, op.gemm, op.causal, op.routing) for op, _ in trained if op.gemm),
        "forward": sum(op.flops_forward for op in everything),
        "backward": sum(op.flops_backward for op in everything),
        "parameters": graph.parameter_count,
        "activations": sum(block.values[op.output].nbytes for op, block in trained),
        "traffic": sum(op.bytes_forward + op.bytes_backward for op, _ in trained),
        "saved": saved_bytes(graph),
    }


def _shapes(block: Block, op: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(block.values[name].shape for name in (*op.inputs, op.output))
