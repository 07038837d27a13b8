"""What captures make counts as old, and is collected all the same."""

from __future__ import annotations

import gc
import weakref

from autoplan.graph.collection import collection_held


class Circle:
    def __init__(self) -> None:
        self.itself = self


def _is_among(wanted: object, generation: int) -> bool:
    return any(found is wanted for found in gc.get_objects(generation=generation))


def test_what_is_made_while_collection_is_held_is_old_afterwards() -> None:
    assert gc.isenabled() and not gc.get_freeze_count()
    with collection_held():
        assert not gc.isenabled()
        kept, gone = Circle(), weakref.ref(Circle())
        assert _is_among(kept, 0)
    assert gc.isenabled() and not gc.get_freeze_count()
    assert _is_among(kept, 2) and gone() is not None
    gc.collect()
    assert gone() is None


def test_what_somebody_keeps_out_of_sight_stays_so() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with collection_held():
            kept = Circle()
        assert gc.get_freeze_count() >= before > 0
        assert not _is_among(kept, 2)
    finally:
        gc.unfreeze()
