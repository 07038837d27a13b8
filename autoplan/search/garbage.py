"""Fewer looks for reference cycles while a search makes many objects that live as long as it does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_NEW_OBJECTS = 20_000
"""Between two looks at new objects: a look at all of them, after a hundred of these, takes a quarter of a second once
torch is there."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Inside, Python looks for garbage in cycles less often, if it does at all; afterwards as often as before."""
    before = gc.get_threshold()
    if 0 < before[0] < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
