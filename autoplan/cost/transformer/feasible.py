"""What no program could run, however slowly: degrees that do not divide what they cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.shape import Transformer
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster

__all__ = ["check_configuration"]


def check_configuration(shape: Transformer, c: Configuration, cluster: AnyCluster, schedule: str) -> None:
    """Raise InputError naming the first option of one configuration that cannot be.

    Args:
        cluster: the degrees must multiply to its devices.
    """
    world = cluster.world_size
    _divides("--tp", c.tp, "the heads", shape.heads)
    if shape.mla is None and int(shape.key_heads) % c.tp and c.tp % int(shape.key_heads):
        raise InputError(
            "--tp",
            c.tp,
            f"a divisor or a multiple of the {shape.key_heads} key heads",
            "choose another --tp",
        )
    _divides("--tp", c.tp, "the MLP's width", shape.ffn)
    _divides("--cp", c.cp * (c.tp if c.sp else 1), "the sequence, with --tp", c.seq)
    if c.pp * c.vpp > shape.layers:
        raise InputError(
            "--pp", c.pp, f"at most {shape.layers} layers over pp x vpp chunks", "lower --pp or --vpp"
        )
    if c.world != world:
        raise InputError(
            "--dp",
            c.dp,
            f"tp x pp x cp x dp = {world} devices (these make {c.world})",
            "change a degree, or give --nodes or --gpus to match",
        )
    if c.pp % cluster.stage_multiple:
        expected = f"a multiple of {cluster.stage_multiple}, so that no stage has devices of two types"
        raise InputError("--pp", c.pp, expected, "choose another --pp")
    if shape.moe:
        _divides("--ep", c.ep, "the experts", shape.experts)
        _divides("--ep", c.ep * c.etp, "tp x cp x dp", c.tp * c.cp * c.dp)
    elif c.ep > 1:
        raise InputError("--ep", c.ep, "1 for a model without experts", "leave --ep out")
    if schedule in ("zbv", "dualpipe-v") and c.vpp != 2:
        raise InputError("--vpp", c.vpp, f"2 chunks a rank for {schedule}", "give --vpp 2")
    if schedule in ("gpipe", "1f1b") and c.vpp != 1:
        raise InputError("--vpp", c.vpp, f"1 for {schedule}", "give --schedule interleaved")


def _divides(option: str, degree: int, what: str, size: float) -> None:
    if int(size) % degree:
        raise InputError(option, degree, f"a divisor of {what} ({int(size)})", f"choose another {option}")
