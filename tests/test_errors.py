"""The exception tree is the one that is drawn, and every message is one line with its four parts."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from autoplan import errors
from autoplan.errors import AutoplanError, CertificateError, DistributedError, InputError, NoPlanError

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_the_tree_at_the_head_of_the_file_is_the_tree() -> None:
    drawn = re.findall(r"^([ │├└─]*)(\w+Error)\s", errors.__doc__ or "", re.MULTILINE)
    parents: list[tuple[int, str]] = []
    for indent, name in drawn:
        while parents and parents[-1][0] >= len(indent):
            parents.pop()
        if parents:
            assert getattr(errors, name).__base__ is getattr(errors, parents[-1][1])
        parents.append((len(indent), name))
    assert sorted(name for _, name in drawn) == sorted(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_message_names_field_value_expectation_and_remedy(kind: type[AutoplanError]) -> None:
    error = kind("--tp", 3, "a divisor of 8", "use 2 or 4")
    assert str(error) == "--tp: got 3, expected a divisor of 8; use 2 or 4"
    assert error.to_json() == {
        "error": {"field": "--tp", "value": 3, "expected": "a divisor of 8", "remedy": "use 2 or 4"}
    }


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_travels_between_processes(kind: type[AutoplanError]) -> None:
    error = pickle.loads(pickle.dumps(kind("--tp", 3, "a divisor of 8", "use 2 or 4")))
    assert type(error) is kind
    assert str(error) == "--tp: got 3, expected a divisor of 8; use 2 or 4"


def test_a_message_is_one_line_and_bounded() -> None:
    error = InputError("field", "x" * 10_000 + "\n", "one\nline", "cut\nit")
    assert "\n" not in str(error)
    assert len(str(error)) < 300


def test_any_value_can_be_printed_as_json() -> None:
    data = InputError("field", {1, object()}, "a number", "give one").to_json()
    assert isinstance(json.loads(json.dumps(data))["error"]["value"], str)


def test_exit_statuses() -> None:
    statuses = {kind.__name__: kind.exit_status for kind in CLASSES}
    assert statuses.pop(NoPlanError.__name__) == 3
    assert statuses.pop(DistributedError.__name__) == 1
    assert statuses.pop(CertificateError.__name__) == 1
    assert set(statuses.values()) == {2}
