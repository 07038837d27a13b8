"""Rows sent to their experts and back, models whose experts cannot be shared out, and state under expert parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from equality import (
    SEQ,
    VOCAB,
    Case,
    difference,
    gpt_loss,
    make,
    make_batch,
    program_of,
    reference,
)
from ranks import Ranks
from routed_models import OddModel, Penalised
from torch import Tensor, nn

from autoplan.errors import PlanError
from autoplan.graph.expert_cut import cut_experts
from autoplan.graph.trace import trace
from autoplan.rewrite.expert_kernels import rows_back, rows_counted, rows_ended, rows_there

COUNTS = {
    "uneven": ([[3, 0, 1, 2], [0, 4, 1, 1]], 0),
    "one rank has nothing to do": ([[2, 5, 0, 0], [1, 3, 0, 0]], 0),
    "no rows at all": ([[0, 0, 0, 0], [0, 0, 0, 0]], 3),
    "rows of no expert": ([[1, 1, 1, 1], [0, 0, 2, 0]], 2),
}


def _exchanged(counts_RE: list[list[int]], rest: int) -> None:
    rank, ranks, experts = dist.get_rank(), 2, 4
    group = dist.group.WORLD
    assert group is not None

    def rows(of: int) -> Tensor:
        """Each row tells its rank, its expert and its place."""
        labels = [(of, e, i) for e, n in enumerate(counts_RE[of]) for i in range(n)]
        return torch.tensor([*labels, *[(of, experts, i) for i in range(rest)]], dtype=torch.float64).view(
            -1, 3
        )

    x = rows(rank).requires_grad_()
    end_E = torch.tensor(counts_RE[rank]).cumsum(0).to(torch.int32)
    counts = rows_counted(end_E, ranks, group.group_name)
    there = rows_there(x, counts, group.group_name)
    mine = range(rank * experts // ranks, (rank + 1) * experts // ranks)
    expected = [row for e in mine for r in range(ranks) for row in rows(r)[rows(r)[:, 1] == e].tolist()]
    assert there.tolist() == expected
    own = rows_ended(counts, end_E)
    assert own.dtype == end_E.dtype
    assert own.tolist() == torch.tensor([sum(c[e] for c in counts_RE) for e in mine]).cumsum(0).tolist()
    back = rows_back(there * (rank + 1), counts, x.shape[0], group.group_name)
    factor = torch.where(x[:, 1:2] < experts, (x[:, 1:2] // 2 + 1), 0.0).detach()
    assert torch.equal(back, x * factor)
    back.sum().backward()
    assert torch.equal(x.grad, factor.expand_as(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COUNTS)
def test_rows_go_to_their_experts_and_back(two: Ranks, name: str) -> None:
    two(_exchanged, *COUNTS[name])


def _graph(model: nn.Module) -> Any:
    ids = torch.zeros(2, SEQ, dtype=torch.long)
    return trace(model, {"ids": ids, "labels": ids}, gpt_loss)


@pytest.mark.parametrize(
    ("model", "degree", "message"),
    [
        (OddModel(VOCAB), 3, "a divisor of the 4 experts"),
        (OddModel(VOCAB, mixture=Penalised), 2, "reads the weights of all experts"),
        (make("gpt", "fp32")[0], 2, "no layer of this model routes its tokens to experts"),
    ],
    ids=["three ranks", "read elsewhere", "no experts"],
)
def test_experts_that_cannot_be_shared_out_are_refused(model: nn.Module, degree: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        cut_experts(_graph(model), degree)


def test_a_rank_has_its_own_experts_and_all_rows() -> None:
    graph = _graph(OddModel(VOCAB))
    (kind,) = (kind for kind, block in graph.kinds.items() if any(op.routing for op in block.ops))
    whole, local = graph.kinds[kind], cut_experts(graph, 2).kinds[kind]
    dims = {local.parameters[name]: dim for name, dim in local.expert_dims.items()}
    assert dims == {"up": 0, "down": 0}
    assert local.flops_forward == whole.flops_forward
    sent = {
        op.inputs[0]: op.sends[0].nbytes
        for op in local.ops
        if op.target in ("autoplan.there", "autoplan.back")
    }
    assert len(sent) == 4  # rows, their biases and weights there; what the experts make of them back
    assert sum(op.target == "autoplan.back" for op in local.ops) == 1


CHAIN = [
    Case("moe", fsdp=4, ep=2, zero=3, num_micro_batches=1),
    Case("moe", dp=2, ep=2, tp=2, seed=2),
    Case("moe", fsdp=2, zero=2),
]
"""Each goes on from what the one before wrote; all of them take one batch of 4."""


def _link(case: Case, first: int, path: str, last: str | None) -> float:
    program = program_of(case, scramble=last is not None)
    if last is not None:
        program.load(last)
    loss = program.step(program.shard(make_batch("moe", 4, first))).item()
    program.save(path)
    return loss


def test_a_checkpoint_goes_on_under_another_number_of_expert_ranks(
    four: Ranks, two: Ranks, tmp_path: Path
) -> None:
    expected = reference(CHAIN[-1], len(CHAIN))[0]
    last = None
    for step, (case, pool) in enumerate(zip(CHAIN, (four, four, two), strict=True)):
        path = str(tmp_path / str(step))
        arguments = (case, step, path, last)
        for loss in pool(_link, *arguments):
            assert loss == pytest.approx(expected[step], rel=1e-10)
        last = path


def _clips(case: Case, limit: float) -> None:
    program = program_of(case)
    program.step(program.shard(make_batch(case.model, case.global_batch, 0)), max_grad_norm=limit)
    model, loss = make(case.model, case.dtype)
    batch = make_batch(case.model, case.global_batch, 0)
    output = model(**batch)
    (loss(output, batch) if loss else output).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
    assert norm > limit  # or nothing would be cut
    assert program.grad_norm is not None
    assert program.grad_norm.item() == pytest.approx(norm, rel=1e-10)
    cut = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert difference(program.full_gradients(), cut) < 1e-10


def test_gradients_are_cut_to_the_norm_of_one_process(four: Ranks) -> None:
    four(_clips, Case("moe", dp=2, ep=2, tp=2, seed=3), 0.3)
