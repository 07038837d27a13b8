"""What a rank says when another has failed: who it was and why, as far as anybody knows.

A rank that fails leaves its reason in the process group's store before it goes. Those that find a connection
closed, or wait too long, look there, and stop with one clear error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch.distributed as dist

from autoplan.errors import AutoplanError, DistributedError
from autoplan.runtime.groups import forget_groups
from autoplan.runtime.world import world_size

__all__ = ["clear_failures"]

_LOST = re.compile(
    r"connection (closed|reset|refused)|socket|timed? ?out|broken pipe|gloo|nccl|peer|remote", re.IGNORECASE
)
_REMEDY = "see that rank's own output, start again, and load the last checkpoint"


@contextlib.contextmanager
def clear_failures() -> Iterator[None]:
    """Turn the loss of another rank into DistributedError, and tell the others of a failure of this one."""
    if world_size() == 1:
        yield
        return
    try:
        yield
    except AutoplanError as error:
        forget_groups()
        _tell(str(error))
        raise
    except RuntimeError as error:
        forget_groups()
        if not _LOST.search(str(error)):
            _tell(f"{type(error).__name__}: {error}")
            raise
        told = _told()
        _tell("lost its connection to another rank")
        what = "; ".join(f"rank {rank}: {text}" for rank, text in told.items())
        first = str(error).splitlines()[0]
        raise DistributedError(
            "ranks",
            what or f"a rank that has gone, or hangs ({first})",
            "every rank to take each step",
            _REMEDY,
        ) from error
    except Exception as error:
        forget_groups()
        _tell(f"{type(error).__name__}: {error}")
        raise


def _key(rank: int) -> str:
    return f"autoplan/failure/{rank}"


def _tell(reason: str) -> None:
    with contextlib.suppress(Exception):  # the store may have gone with the rank that keeps it
        dist.distributed_c10d._get_default_store().set(_key(dist.get_rank()), reason)


def _told() -> dict[int, str]:
    """The reasons that other ranks have given, by rank; those that only lost a connection say less than others."""
    found: dict[int, str] = {}
    with contextlib.suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        for rank in range(world_size()):
            if rank != dist.get_rank() and store.check([_key(rank)]):
                found[rank] = store.get(_key(rank)).decode()
    causes = {rank: text for rank, text in found.items() if not text.startswith("lost its connection")}
    return causes or found
