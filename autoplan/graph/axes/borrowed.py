"""Axes of the ``torch.autograd.Function``s that models of transformers bring along, by name."""

from __future__ import annotations

from autoplan.graph.axes.spec import register
from autoplan.graph.axes.written import written_rule

_MODELS = "transformers.models"

register(
    f"{_MODELS}.bloom.modeling_bloom.GeLUFunction",
    f"{_MODELS}.recurrent_gemma.modeling_recurrent_gemma.SqrtBoundDerivative",
)(written_rule("... -> ...", {}))

# scores, multiplier, chosen expert, gates, mask of each token; scores get their gradient by the backward alone
register(f"{_MODELS}.phimoe.modeling_phimoe.PhimoeMultiplier")(
    written_rule("t e!, t 1, t 1, t e!, t 1 -> t 1", {})
)
