"""The losses of models that do not bring their own: of language models, and of pairs of text and image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORED", "next_token_loss", "pair_loss", "pair_sigmoid_loss"]

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


def pair_loss(output: Any, batch: Any) -> Tensor:
    """Each text among the images and each image among the texts (CLIP, arXiv:2103.00020, figure 3)."""
    target = torch.arange(output.logits_per_text.shape[0], device=output.logits_per_text.device)
    of_texts = F.cross_entropy(output.logits_per_text, target)
    return (of_texts + F.cross_entropy(output.logits_per_image, target)) / 2


def pair_sigmoid_loss(output: Any, batch: Any) -> Tensor:
    """Each pair of a text and an image on its own (SigLIP, arXiv:2303.15343, algorithm 1)."""
    logits = output.logits_per_text
    sign = 2 * torch.eye(logits.shape[0], device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum(-1).mean()
