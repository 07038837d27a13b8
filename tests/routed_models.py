"""A mixture with what few have: weights of all experts in one matrix, biases, an expert that does nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph.sources.grouped_mm import grouped_mm

EXPERTS, CHOSEN = 4, 2


class OddMixture(nn.Module):
    """The router may also choose expert ``EXPERTS``, which does nothing; a token's weight is on its hidden row."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.router = nn.Linear(width, EXPERTS + 1)
        self.up = nn.Parameter(torch.randn(EXPERTS * hidden, width) * width**-0.5)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS + 1, hidden) * 0.1)
        self.down = nn.Parameter(torch.randn(EXPERTS * hidden, width) * hidden**-0.5)
        self.scale = nn.Parameter(torch.ones(hidden))

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = x_BSD.reshape(-1, self.width)
        weight_TK, expert_TK = self.router(x_TD).softmax(-1).topk(CHOSEN)
        expert_P = expert_TK.flatten()
        order_P = expert_P.argsort(stable=True)
        end_E = (expert_P[:, None] == torch.arange(EXPERTS)).sum(0).cumsum(0)
        up_EDH = self.up.view(EXPERTS, self.hidden, self.width).transpose(1, 2)
        y_PH = grouped_mm(x_TD[order_P // CHOSEN], up_EDH, end_E) + self.up_bias[expert_P[order_P]]
        y_PH = F.gelu(y_PH) * self.scale * weight_TK.flatten()[order_P][:, None]
        y_PD = grouped_mm(y_PH, self.down.view(EXPERTS, self.hidden, self.width), end_E)
        return x_BSD + y_PD[order_P.argsort()].view(-1, CHOSEN, self.width).sum(1).view_as(x_BSD)


class Penalised(OddMixture):
    """Reads the weights of all experts at once."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        return super().forward(x_BSD) + self.down.square().mean()


class OddModel(nn.Module):
    def __init__(self, vocabulary: int, width: int = 32, mixture: type[OddMixture] = OddMixture) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(mixture(width, 24) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
