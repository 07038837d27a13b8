"""Every architecture of the zoo, in the order of the table."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.decoders import DECODERS
from zoo.mixtures import MIXTURES
from zoo.others import OTHERS
from zoo.plain import PLAIN
from zoo.recurrent import RECURRENT

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: tuple[Architecture, ...] = (*DECODERS, *MIXTURES, *RECURRENT, *OTHERS, *PLAIN)
