"""What no cut of a chain into stages can beat, in closed form.

Let a micro-batch need C_F seconds forward and C_B backward over the whole chain, C = C_F + C_B, m
micro-batches pass p stages, and q = 1 - 1/m. Of the step,

    C / (1 - q^p)                               stage s does m c_s after all earlier stages' c_j: the least
                                                maximum over s of Σ_{j<s} c_j + m c_s has c_s ∝ q^s
    C_B (m + p - 1) / p + C_F max(m, p) / p     the mean over s of Σ F + Σ B + (m-1) B_s + (m-w_s) F_s
    m C / p + tail / p                          the mean over s of a stage's own work and its tail

are three lower bounds (see ``search.stages`` for the paths they come from).
"""

from __future__ import annotations

__all__ = ["pipeline_bound_s"]


def pipeline_bound_s(
    forward_s: float, backward_s: float, tail_s: float, stages: int, micro_batches: int
) -> float:
    """Seconds; all three arguments are sums over the stages."""
    m, p, both = micro_batches, stages, forward_s + backward_s
    first = both / (1 - (1 - 1 / m) ** p)
    mean = backward_s * (m + p - 1) / p + forward_s * max(m, p) / p
    own = (m * both + tail_s) / p
    return max(first, mean, own)
