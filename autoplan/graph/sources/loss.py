"""The loss of a language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORED", "next_token_loss"]

IGNORED = -100
"""The label that counts for nothing, PyTorch's and Hugging Face's."""


def next_token_loss(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Mean cross-entropy of each position against the next position's label, in at least float32.

    The labels move instead of the logits, as in Hugging Face's ``ForCausalLMLoss``: the last position
    gets an ignored label, and the logits, the largest tensor of the model, are never sliced.
    """
    target_BS = F.pad(labels_BS, (0, 1), value=IGNORED)[:, 1:]
    if torch.finfo(logits_BSV.dtype).bits < 32:
        logits_BSV = logits_BSV.float()
    return F.cross_entropy(
        logits_BSV.view(-1, logits_BSV.shape[-1]), target_BS.reshape(-1), ignore_index=IGNORED
    )
