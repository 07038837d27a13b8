"""What a program sends on its cp axis is, byte for byte, what the cost model charges."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from equality import Case, make_batch, program_of, traced
from ranks import Ranks
from torch.utils._python_dispatch import TorchDispatchMode

from autoplan.graph.cut import cut_graph
from autoplan.graph.layout import Layout

_KINDS = {
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_reduce": "all_reduce",
    "all_to_all_single": "all_to_all",
}
_SENT_AS = {"send_recv": "all_to_all"}  # to one rank alone


class _Bytes(TorchDispatchMode):
    """Adds up what functional collectives send: of a gather what comes out, of the others what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func.__name__.split(".")[0]) if func.namespace == "_c10d_functional" else None
        if kind is not None:
            self.found[kind] += (out if kind == "all_gather" else args[0]).nbytes
        return out


def _sent(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """(bytes that a step sends, bytes that are charged) by kind of collective."""
    program, graph = program_of(case), traced(case)
    plan, batch = program.plan, make_batch(case.model, case.global_batch, 0)
    with _Bytes() as counted:
        program.step(program.shard(batch))
    local = cut_graph(graph, plan.cp_layouts, Layout.parse(plan.cp_boundary), plan.cp, plan.cp_order)
    charged: Counter[str] = Counter()
    for unit in local.units:
        for op in local.kinds[unit.kind].ops:
            for send in op.sends:
                times = plan.num_micro_batches * max(send.beside, 1)
                charged[_SENT_AS.get(send.kind, str(send.kind))] += int(send.nbytes) * times
    return dict(counted.found), dict(charged)


@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize("attention", ["rows", "ring", "heads"])
def test_a_program_sends_what_is_charged(two: Ranks, model: str, attention: str) -> None:
    for sent, charged in two(_sent, Case(model, cp=2, cp_attention=attention, micro_batch=2)):
        assert sent == charged
        assert ("all_to_all" in sent) == (attention != "rows")
