"""Loops of Hugging Face's models that no graph can hold, replaced while a model is traced.

A replacement is the same function, written with operators of ours. It is in place for the time of the trace only,
and only in modules that are loaded, which a model's own always is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from autoplan.graph.expert_loops import dbrx_experts, jetmoe_experts, jetmoe_gating, longcat_experts
from autoplan.graph.recurrences import gated_recurrence, selective_scan, weighted_averages

__all__ = ["loops_as_operators"]

_DELTA_RULE = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "kimi_linear", "qwen4_exp")
_REPLACEMENTS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    *(
        (kind, "mamba_selective_scan", lambda _: selective_scan)
        for kind in ("mamba", "falcon_mamba", "jamba", "zamba")
    ),
    ("rwkv", "rwkv_linear_attention", weighted_averages),
    ("recurrent_gemma", "RecurrentGemmaRglru._rnn_scan", gated_recurrence),
    # these solve a triangular system row by row where they are exported, and by one operator where they train
    *((kind, "is_torchdynamo_exporting", lambda _: lambda: False) for kind in _DELTA_RULE),
    ("dbrx", "DbrxExperts.forward", lambda _: dbrx_experts),
    ("longcat_flash", "LongcatFlashExperts.forward", lambda _: longcat_experts),
    ("jetmoe", "JetMoeTopKGating.forward", lambda _: jetmoe_gating),
    ("jetmoe", "JetMoeParallelExperts.forward", lambda _: jetmoe_experts),
)
"""Model, function or method, and what makes its replacement from the original."""


@contextmanager
def loops_as_operators() -> Iterator[None]:
    """Within, the loops of the models that are loaded run as operators."""
    with ExitStack() as stack:
        for kind, path, make in _REPLACEMENTS:
            owner: Any = sys.modules.get(f"transformers.models.{kind}.modeling_{kind}")
            *classes, name = path.split(".")
            for part in classes:
                owner = getattr(owner, part, None)
            if hasattr(owner, name):
                stack.enter_context(_replaced(owner, name, make(getattr(owner, name))))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
