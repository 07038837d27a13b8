"""One training configuration written by hand, or many at once as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np

__all__ = ["Configuration", "Recompute"]


class Recompute(IntEnum):
    """What backward runs again: nothing, attention's core (Korthikanti et al., 2022, section 5), or layers."""

    NONE = 0
    SELECTIVE = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    """Degrees and batch; every field a number, or an array with one entry for each configuration.

    Ranks lie as Megatron lays them: tp innermost, then cp, dp, and pp outermost; ep and its own tensor
    degree ``etp`` divide tp·cp·dp.

    Args:
        seq: tokens of a sample.
        micro_batch: samples of one micro-batch on one data rank.
        micro_batches: micro-batches of one step on one data rank.
        sp: norms and residuals are cut along the sequence over tp (Korthikanti et al., 2022).
        vpp: chunks of layers on one stage (interleaved 1F1B).
        zero: 0 to 3.
        recompute: a ``Recompute``.
        flash: attention is one fused kernel; otherwise scores go through memory.
        packed: independent documents in one sample, which attention keeps apart (fine-tuning).
        frozen: the model's own parameters do not train (LoRA); backward has no weight products.
        parked: share of the layers whose activations wait for backward in the host's memory.
        host_optimizer: the optimizer's state and its step are the host's (ZeRO-Offload).
    """

    seq: Any
    micro_batch: Any
    micro_batches: Any
    tp: Any = 1
    sp: Any = False
    pp: Any = 1
    vpp: Any = 1
    cp: Any = 1
    ep: Any = 1
    etp: Any = 1
    dp: Any = 1
    zero: Any = 0
    recompute: Any = Recompute.NONE
    flash: Any = True
    packed: Any = 1
    frozen: Any = False
    parked: Any = 0.0
    host_optimizer: Any = False

    @property
    def world(self) -> Any:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def global_batch(self) -> Any:
        return self.micro_batch * self.micro_batches * self.dp

    @property
    def tokens(self) -> Any:
        """Tokens of one micro-batch on one rank of the cp group."""
        return self.micro_batch * self.seq / self.cp

    @property
    def sequence_cut(self) -> Any:
        """Ranks that share norms and residuals: tp with sequence parallel, else 1."""
        return np.where(self.sp, self.tp, 1)

    @property
    def data_ranks(self) -> Any:
        """Ranks with the same dense parameters: dp and cp together."""
        return self.dp * self.cp

    @property
    def expert_ranks(self) -> Any:
        """Ranks with the same experts."""
        return np.maximum(self.tp * self.cp * self.dp // (self.ep * self.etp), 1)

    def __len__(self) -> int:
        return int(np.broadcast(*(np.asarray(getattr(self, f.name)) for f in fields(self))).size)

    def as_arrays(self) -> Configuration:
        """Every field as a one-dimensional array of the common length."""
        values = np.broadcast_arrays(*(np.atleast_1d(getattr(self, f.name)) for f in fields(self)))
        return replace(self, **{f.name: v for f, v in zip(fields(self), values, strict=True)})
