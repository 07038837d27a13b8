"""What two profiles say differently."""

from __future__ import annotations

from dataclasses import dataclass

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.figures import Curve, curves_of, figures_of, rate_at

__all__ = ["Difference", "ProfileDiff", "diff_profiles"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure or one point of a curve, in both profiles; None where one has none."""

    path: str
    unit: str
    a: float | None
    b: float | None

    @property
    def relative(self) -> float | None:
        """(b - a) / a."""
        if self.a is None or self.b is None or self.a == 0:
            return None
        return (self.b - self.a) / self.a


@dataclass(frozen=True, slots=True)
class ProfileDiff:
    """The differences beyond a threshold, and how many figures and points were compared."""

    a: str
    b: str
    figures: tuple[Difference, ...]
    points: tuple[Difference, ...]
    compared_figures: int
    compared_points: int


def diff_profiles(a: Cluster, b: Cluster, threshold: float = 0.05) -> ProfileDiff:
    """Figures by their path, and points of curves, that differ by more than ``threshold`` of ``a``'s.

    A point that only one of the two has measured is compared with what the other one's curve or
    formula gives there. What only one of them has at all is a difference too.
    """
    left = {figure.path: figure for figure in figures_of(a)}
    right = {figure.path: figure for figure in figures_of(b)}
    figures = [
        Difference(
            path,
            (left.get(path) or right[path]).unit,
            left[path].value if path in left else None,
            right[path].value if path in right else None,
        )
        for path in [*left, *(path for path in right if path not in left)]
    ]
    points = _points(a, b)
    return ProfileDiff(
        a=a.name,
        b=b.name,
        figures=tuple(d for d in figures if _beyond(d, threshold)),
        points=tuple(d for d in points if _beyond(d, threshold)),
        compared_figures=len(figures),
        compared_points=len(points),
    )


def _beyond(difference: Difference, threshold: float) -> bool:
    if difference.a == difference.b:
        return False
    relative = difference.relative
    return relative is None or abs(relative) > threshold


def _points(a: Cluster, b: Cluster) -> list[Difference]:
    """Every point that either has measured, once."""
    found: dict[tuple[str, tuple[int, ...]], Difference] = {}
    for curve in (*curves_of(a), *curves_of(b)):
        for size in curve.sizes:
            if (curve.path, size) not in found:
                rates = (rate_at(cluster, curve.kind, curve.key, size) for cluster in (a, b))
                found[curve.path, size] = Difference(
                    f"{curve.path} {_sizes(curve, size)}", curve.unit, *rates
                )
    return list(found.values())


def _sizes(curve: Curve, size: tuple[int, ...]) -> str:
    return f"{size[0]} B" if curve.kind in ("communication", "memory", "host") else " x ".join(map(str, size))
