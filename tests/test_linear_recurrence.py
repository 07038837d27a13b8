"""A recurrence as one operator is the loop that it stands for, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoplan.graph.sources.linear_recurrence import linear_recurrence


def loop(decay: Tensor, gain: Tensor, dim: int) -> Tensor:
    state, states = torch.zeros_like(gain.select(dim, 0)), []
    for step in range(gain.shape[dim]):
        state = decay.select(dim, step) * state + gain.select(dim, step)
        states.append(state)
    return torch.stack(states, dim)


@pytest.mark.parametrize(("shape", "dim"), [((2, 1, 3), 1), ((2, 5, 3), 1), ((16, 2), 0), ((2, 3, 13, 2), 2)])
def test_it_is_the_loop(shape: tuple[int, ...], dim: int) -> None:
    torch.manual_seed(0)
    decay, gain = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(shape, dtype=torch.float64)
    ours, theirs = linear_recurrence(decay, gain, dim), loop(decay, gain, dim)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (decay, gain)),
        torch.autograd.grad((theirs * weight).sum(), (decay, gain)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_it_is_an_operator_in_every_form() -> None:
    decay, gain = (torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.library.opcheck(linear_recurrence, (decay, gain, 1))
