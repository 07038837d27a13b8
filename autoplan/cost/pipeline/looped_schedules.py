"""GPipe, 1F1B, interleaved 1F1B and ZB-H1, as ``torch.distributed.pipelining`` runs them.

Interleaved schedules take micro-batches in groups: a rank runs a group through its first chunk, then
through its second, and so on. torch asks for equal groups; here they may differ by one micro-batch, so
that any number of micro-batches will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from autoplan.cost.pipeline.order import Action, Pass

__all__ = ["gpipe", "group_sizes", "interleaved", "one_f_one_b", "zb_h1"]


def gpipe(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """All forwards, then all backwards: Huang et al., 2019. ``vpp`` is 1."""
    forward = [Action(rank, Pass.FORWARD, i) for i in range(micro_batches)]
    return forward + [Action(rank, Pass.BACKWARD, i) for i in range(micro_batches)]


def one_f_one_b(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """``pp - rank`` forwards, then backward and forward in turn: Narayanan et al., 2021, figure 4. ``vpp`` is 1.

    torch refuses fewer micro-batches than ranks; here the forwards are then fewer.
    """
    return _in_turn(pp, 1, micro_batches, rank, per_hop=1)


def interleaved(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """1F1B over ``vpp`` chunks a rank: Narayanan et al., 2021, section 2.2."""
    return _in_turn(pp, vpp, micro_batches, rank, per_hop=2)


def _in_turn(pp: int, vpp: int, micro_batches: int, rank: int, per_hop: int) -> list[Action]:
    """Forwards to fill the ranks behind, ``per_hop`` for each of them; then forward and backward in turn."""
    sizes = group_sizes(pp, micro_batches)
    before = min((vpp - 1) * sizes[0] + per_hop * (pp - 1 - rank), micro_batches * vpp)
    forwards = _forwards(pp, vpp, sizes, rank)
    order = list(islice(forwards, before))
    for chunk, micro_batch in _backwards(pp, vpp, sizes, rank):
        order += islice(forwards, 1)
        order.append(Action(chunk, Pass.BACKWARD, micro_batch))
    return order


def zb_h1(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """ZB-H1: Qi et al., 2024, section 3.1, over ``vpp`` chunks a rank.

    The memory of 1F1B. The backward is halved; the halves that give weight gradients come ``rank``
    micro-batches late, and fill what would be idle at the end.
    """
    sizes = group_sizes(pp, micro_batches)
    before = min((vpp - 1) * sizes[0] + pp - 1 - rank, micro_batches * vpp)
    forwards = _forwards(pp, vpp, sizes, rank)
    weights = _backwards(pp, vpp, sizes, rank)
    order = list(islice(forwards, before))
    for done, (chunk, micro_batch) in enumerate(_backwards(pp, vpp, sizes, rank)):
        order += islice(forwards, 1)
        order.append(Action(chunk, Pass.INPUT, micro_batch))
        if done >= rank:
            order += [Action(late, Pass.WEIGHT, i) for late, i in islice(weights, 1)]
    return order + [Action(late, Pass.WEIGHT, i) for late, i in weights]


def group_sizes(pp: int, micro_batches: int) -> list[int]:
    """Micro-batches in ``max(1, micro_batches // pp)`` groups, the larger ones first."""
    groups = max(1, micro_batches // pp)
    size, over = divmod(micro_batches, groups)
    return [size + 1] * over + [size] * (groups - over)


def _forwards(pp: int, vpp: int, sizes: list[int], rank: int) -> Iterator[Action]:
    first = 0
    for size in sizes:
        for level in range(vpp):
            for i in range(first, first + size):
                yield Action(level * pp + rank, Pass.FORWARD, i)
        first += size


def _backwards(pp: int, vpp: int, sizes: list[int], rank: int) -> Iterator[tuple[int, int]]:
    first = 0
    for size in sizes:
        for level in reversed(range(vpp)):
            for i in range(first, first + size):
                yield level * pp + rank, i
        first += size
