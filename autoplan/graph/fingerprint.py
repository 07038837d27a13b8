"""A short name for a model's structure, by which a plan knows the model that it is for."""

from __future__ import annotations

import hashlib

from autoplan.graph.ir import ModelGraph

__all__ = ["fingerprint"]


def fingerprint(graph: ModelGraph) -> str:
    """A digest of the model's structure: kinds, parameter shapes, wiring; not of the micro-batch size."""
    digest = hashlib.sha256()
    for unit in graph.units:
        digest.update(f"{unit.name} {unit.kind} {unit.arguments} {unit.results}".encode())
    for kind, block in sorted(graph.kinds.items()):
        digest.update(kind.encode())
        for op in block.ops:
            digest.update(f"{op.name} {op.target}".encode())
        for value, relative in sorted(block.parameters.items()):
            digest.update(f"{value} {relative} {block.values[value].shape}".encode())
    return digest.hexdigest()[:16]
