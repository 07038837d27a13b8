"""Python's garbage collector, held while a model is captured.

Capturing makes hundreds of thousands of objects that live as long as the graph does. The collector would walk
through all of them, and through all of torch, again and again, and find nothing. Afterwards they count as old: the next
look at young objects does not begin with them, and whatever is garbage among them goes with the next look at all.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_held"]


@contextmanager
def collection_held() -> Iterator[None]:
    """No automatic collection inside; afterwards it is as it was, and what was made inside is old."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            _grow_old()
            gc.enable()


def _grow_old() -> None:
    """Let all objects be old, without a walk through them; not where somebody keeps some out of the collector's sight,
    which would end with this."""
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
