"""Every architecture of the zoo, in the order of the table."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.decoders import DECODERS

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: tuple[Architecture, ...] = (*DECODERS,)
