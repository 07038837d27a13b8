"""Answers about a candidate that another search of the same model may ask for again: what-ifs, pins, larger goals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

import msgspec

from autoplan.cost.step import Assignment
from autoplan.search.layout_choice import LayoutChoice

__all__ = ["as_key", "digest", "remembered"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def remembered(method: _Method) -> _Method:
    """A method of a space that asks each question once.

    The space's ``answers`` are kept for all spaces of one model that would answer alike; what is known of the
    candidate by then (``known_of``) is a part of the question, as bounds say more when more is known.
    """

    @wraps(method)
    def ask(self: Any, degrees: Any, *rest: Any, **options: Any) -> Any:
        named = tuple(options.items())
        key = method.__name__, degrees, self.known_of(degrees), as_key(rest), named
        if key not in self.answers:
            self.answers[key] = method(self, degrees, *rest, **options)
        return self.answers[key]

    return ask  # type: ignore[return-value]


def digest(asked: Any) -> str:
    """Of what msgspec encodes, a key that does not keep it."""
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def as_key(asked: Any) -> Hashable:
    """``asked`` as a key. Choices of layouts live as long as the answers, so that each has an id of its own."""
    match asked:
        case tuple() | list():
            return tuple(map(as_key, asked))
        case LayoutChoice():
            return id(asked)
        case Assignment():
            return asked.start, asked.stop, asked.recompute, tuple(sorted(asked.policies.items()))
        case _:
            return asked
