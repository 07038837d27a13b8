"""Random numbers belong to samples: a model with dropout gives the same numbers under every plan, and again."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from equality import Case, Numbers, check, run
from ranks import Ranks

import autoplan
from autoplan.rewrite.random_kernels import keep_mask, sample_draws, unit_draws

MODEL = "gpt-dropout"
_TWO = [
    Case(MODEL, tp=2, seed=1, recompute="mixed"),
    Case(MODEL, tp=2, seed=2, boundary="S(1)"),
    Case(MODEL, cp=2, seed=3, cp_order="zigzag", zero=3, recompute="full"),
    Case(MODEL, dp=2, num_micro_batches=1),
    Case(MODEL, pp=2),
]
_FOUR = [
    Case(MODEL, cp=2, tp=2, seed=4),
    Case(MODEL, fsdp=2, zero=3, tp=2, seed=5, num_micro_batches=1, recompute="full"),
    Case(MODEL, pp=2, vpp=2, tp=2, schedule="zbv", seed=6),
]


@functools.cache
def in_one_process() -> Numbers:
    return run(Case(MODEL))


@pytest.mark.parametrize("case", _TWO, ids=str)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case, 3, in_one_process())


@pytest.mark.parametrize("case", _FOUR, ids=str)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case, 3, in_one_process())


def test_a_rerun_is_bitwise_equal(two: Ranks) -> None:
    case = Case(MODEL, tp=2, seed=1, recompute="mixed")
    for (losses, _, parameters), (again, _, same) in zip(two(run, case), two(run, case), strict=True):
        assert losses == again
        assert all(torch.equal(parameters[name], same[name]) for name in parameters)


class _Dropping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.nn.functional.dropout(layer(x), 0.3, self.training)
        return x.square().mean()


def test_every_step_and_call_drops_others() -> None:
    program = autoplan.parallelize(
        _Dropping(), torch.ones(4, 8), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )
    batch = torch.ones(4, 8)
    losses = [program.step(batch).item() for _ in range(3)] + [program(batch).item() for _ in range(3)]
    assert len(set(losses)) == 6
    quiet = autoplan.parallelize(_Dropping().eval(), batch)
    assert quiet(batch).item() == quiet(batch).item()


def test_masks_keep_each_element_with_its_probability() -> None:
    draws = sample_draws(3, "step 7", 0, 8)
    for shape in ((8, 50, 64), (400, 64), (8, 4, 32, 32)):
        for p in (0.1, 0.5, 0.9):
            kept = keep_mask(draws, p, 5, shape).double()
            assert kept.shape == shape
            spread = math.sqrt(p * (1 - p) / kept.numel())
            assert abs(kept.mean().item() - (1 - p)) < 5 * spread
            for dim in range(
                len(shape)
            ):  # no row or column is special, and neighbours do not follow each other
                ends = kept.mean([d for d in range(len(shape)) if d != dim])
                assert (ends - (1 - p)).abs().max() < 6 * spread * math.sqrt(shape[dim])
                moved = (kept - (1 - p)) * (kept.roll(1, dim) - (1 - p))
                assert moved.mean().abs() < 5 * p * (1 - p) / math.sqrt(kept.numel())
    assert keep_mask(draws, 0.0, 5, (8, 9)).all()
    assert not keep_mask(draws, 1.0, 5, (8, 9)).any()


def test_masks_of_steps_samples_units_and_ops_have_nothing_in_common() -> None:
    shape, draws = (4, 32, 64), sample_draws(3, "step 7", 0, 4)
    others = [
        keep_mask(sample_draws(3, "step 8", 0, 4), 0.5, 5, shape),
        keep_mask(sample_draws(4, "step 7", 0, 4), 0.5, 5, shape),
        keep_mask(draws.roll(1), 0.5, 5, shape),
        keep_mask(unit_draws(draws, "layers.1"), 0.5, 5, shape),
        keep_mask(draws, 0.5, 6, shape),
    ]
    mask = keep_mask(draws, 0.5, 5, shape)
    for other in others:
        assert abs((mask == other).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(mask.numel())
    whole = sample_draws(3, "step 7", 0, 8)
    assert torch.equal(whole[4:], sample_draws(3, "step 7", 4, 4))
    assert torch.equal(keep_mask(whole, 0.5, 5, (8, 9))[4:], keep_mask(whole[4:], 0.5, 5, (4, 9)))
