"""Python's garbage collector, held while a model is captured.

Capturing makes hundreds of thousands of objects that live as long as the graph does. The collector would walk
through all of them, and through all of torch, again and again, and find nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_held"]


@contextmanager
def collection_held() -> Iterator[None]:
    """No automatic collection inside; afterwards it is as it was."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
