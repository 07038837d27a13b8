"""Models of every kind under plans of every kind: the numbers of one process."""

from __future__ import annotations

import pytest
from equality import Case, check, facts_of
from plan_draws import FACTS, Pairs, covering, drawn
from ranks import Ranks

_SOME = [
    Case("hf-vit", fsdp=2, zero=2, tp=2, seed=4, boundary="S(1)"),
    Case("dlrm", dp=2, tp=2, seed=6, micro_batch=2),
]
_MORE = [
    Case("hf-t5", pp=2, tp=2, seed=3, dtype="fp32", recompute="mixed", schedule="zbv", vpp=2, uneven=True),
    Case("resnet-50", tp=2, pp=2, seed=5, num_micro_batches=1, micro_batch=2, schedule="gpipe"),
    Case("hf-mixtral", cp=2, tp=2, seed=7, num_micro_batches=1, dtype="fp32"),
]

_SHARED_GRADIENT = Case("hf-vit", layers=2, tp=2, seed=431002)


def test_parameters_whose_gradients_are_one_tensor(two: Ranks) -> None:
    """Of one sample, that of the positions is that of what they are added to, and the class token's is a part of it."""
    two(check, _SHARED_GRADIENT)


@pytest.mark.parametrize("case", _SOME, ids=str)
def test_other_models(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", _MORE, ids=str)
def test_more_models(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.slow
@pytest.mark.parametrize("model", FACTS)
def test_what_draws_assume_of_a_model(model: str) -> None:
    units, meets = facts_of(model)
    assert units == FACTS[model].units
    assert FACTS[model].meets or not meets


def test_few_places_of_a_sample_have_all_its_pairs() -> None:
    pairs, few = Pairs(), covering(3, pool=300)
    assert len(few) < 200
    assert pairs.among(drawn(3, place) for place in few) == pairs.among(drawn(3, i) for i in range(300))
