"""A layer of experts: each token goes to its best few, and no token is dropped.

Token-expert pairs are sorted by expert and multiplied group by group, so every shape is known before the
routing is, and the FLOPs are those of the pairs. The auxiliary load-balancing loss is left out: it costs
next to nothing, and the planner assumes balance. Shape suffixes: T tokens, K experts per token, E
experts, P = T·K pairs; else see ``decoder.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph.sources.grouped_mm import grouped_mm
from autoplan.graph.sources.sizes import DecoderConfig

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(nn.Module):
    """Top-k softmax router over SwiGLU experts, the weights of the chosen normalised to 1 (Mixtral,
    arXiv:2401.04088, section 2.1)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.experts = config.experts
        self.experts_per_token = config.experts_per_token
        self.gate = nn.Linear(config.hidden, config.experts, bias=False)
        self.gate_proj_EDF = nn.Parameter(torch.empty(config.experts, config.hidden, config.ffn))
        self.up_proj_EDF = nn.Parameter(torch.empty(config.experts, config.hidden, config.ffn))
        self.down_proj_EFD = nn.Parameter(torch.empty(config.experts, config.ffn, config.hidden))
        for weight in (self.gate_proj_EDF, self.up_proj_EDF, self.down_proj_EFD):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        weight_TK, expert_TK = self._route(x_TD)
        expert_P = expert_TK.flatten()
        order_P = expert_P.argsort(stable=True)
        end_E = (expert_P[:, None] == torch.arange(self.experts, device=x_TD.device)).sum(0).cumsum(0)
        x_PD = x_TD[order_P // self.experts_per_token]
        hidden_PF = F.silu(grouped_mm(x_PD, self.gate_proj_EDF, end_E)) * grouped_mm(
            x_PD, self.up_proj_EDF, end_E
        )
        y_PD = grouped_mm(hidden_PF, self.down_proj_EFD, end_E)
        y_TKD = y_PD[order_P.argsort()].view(-1, self.experts_per_token, x_TD.shape[-1])
        return (y_TKD * weight_TK[..., None]).sum(1).view_as(x_BSD)

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (T, K) in the dtype of ``x_TD``, and which experts they belong to (T, K)."""
        logits_TE = self.gate(x_TD)
        if torch.finfo(logits_TE.dtype).bits < 32:
            logits_TE = logits_TE.float()
        probability_TE = logits_TE.softmax(-1)
        weight_TK, expert_TK = probability_TE.topk(self.experts_per_token, dim=-1)
        return (weight_TK / weight_TK.sum(-1, keepdim=True)).to(x_TD.dtype), expert_TK
