"""Loops over experts in Hugging Face's models, run as products grouped by expert while the model is traced.

Most mixtures of transformers can be told to group their products. The ones here cannot: they ask which
experts have tokens, which no graph can hold. Each replacement computes the same function of the same
parameters. Shape suffixes: T tokens, K experts a token, P = T·K pairs, E experts, D width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autoplan.graph.sources.grouped_mm import grouped_mm

__all__ = ["dbrx_experts", "jetmoe_experts", "jetmoe_gating", "longcat_experts"]


def _routed(
    x_TD: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    experts: int,
    apply: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The weighted sum of each token's experts.

    ``apply`` gets the rows in order of their experts, where each expert's rows end, and each row's expert.
    """
    tokens, chosen = expert_TK.shape
    expert_P = expert_TK.flatten()
    order_P = expert_P.argsort(stable=True)
    end_E = (expert_P[:, None] == torch.arange(experts, device=x_TD.device)).sum(0).cumsum(0)
    y_PD = apply(x_TD[order_P // chosen], end_E, expert_P[order_P])
    y_TKD = y_PD[order_P.argsort()].view(tokens, chosen, -1)
    return (y_TKD * weight_TK[..., None]).sum(1)


def dbrx_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """``DbrxExperts.forward``."""
    mlp, shape = self.mlp, (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    w1_EFD, v1_EFD, w2_EFD = (weight.view(shape) for weight in (mlp.w1, mlp.v1, mlp.w2))

    def apply(x_PD: Tensor, end_E: Tensor, _: Tensor) -> Tensor:
        gate_PF = mlp.activation_fn(grouped_mm(x_PD, w1_EFD.transpose(1, 2), end_E))
        return grouped_mm(gate_PF * grouped_mm(x_PD, v1_EFD.transpose(1, 2), end_E), w2_EFD, end_E)

    x_TD = hidden_states.reshape(-1, self.hidden_size)
    return _routed(x_TD, top_k_index, top_k_weights, self.num_experts, apply).view(hidden_states.shape)


def longcat_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """``LongcatFlashExperts.forward``: rows of a zero expert, which come last, pass as they are."""
    routed = self.num_routed_experts
    up_EDF = self.gate_up_proj[:routed].transpose(1, 2)

    def apply(x_PD: Tensor, end_E: Tensor, expert_P: Tensor) -> Tensor:
        gate_PF, up_PF = grouped_mm(x_PD, up_EDF, end_E).chunk(2, dim=-1)
        y_PD = grouped_mm(self.act_fn(gate_PF) * up_PF, self.down_proj.transpose(1, 2), end_E)
        return torch.where((expert_P >= routed)[:, None], x_PD, y_PD)

    return _routed(hidden_states, top_k_index, top_k_weights, routed, apply).to(hidden_states.dtype)


def jetmoe_gating(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``JetMoeTopKGating.forward``, with the experts' sizes as a tensor."""
    logits_TE = self.layer(hidden_states).float()
    top_TK, expert_TK = logits_TE.topk(self.top_k, dim=1)
    weight_P = torch.softmax(top_TK, dim=1).type_as(hidden_states).flatten()
    expert_P = expert_TK.flatten()
    size_E = (expert_P[:, None] == torch.arange(self.num_experts, device=expert_P.device)).sum(0)
    order_P = expert_P.sort(0).indices
    return order_P, order_P.div(self.top_k, rounding_mode="trunc"), weight_P[order_P], size_E, logits_TE


def jetmoe_experts(self: Any, inputs: Tensor, expert_size: Tensor) -> Tensor:
    """``JetMoeParallelExperts.forward``, with the experts' sizes as a tensor."""
    return grouped_mm(inputs, self.weight.transpose(1, 2), expert_size.cumsum(0))
