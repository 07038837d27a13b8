"""Our models, clusters and plans as Calculon's application, system and execution; and its answers.

Calculon (Isaev et al., "Calculon: a methodology and tool for high-level co-design of systems and large language models",
SC 2023; github.com/calculon-ai/calculon) prices one transformer block by its layers' FLOPs and bytes, and a step by
formulas of tensor, pipeline and data parallelism. It is a second opinion that shares nothing with our cost model but the
figures of the hardware. What the translation holds to:

- A system has the profile's peak, bandwidth of memory, links and what of them is reached: efficiencies of matrix products
  come from the profile by size, a network's from its collectives of 64 MiB, less its latency.
- Calculon's networks are flat: a rank's traffic leaves by its own port. But of a ring through whole nodes most steps stay
  inside them, so that eight ranks of a node together send a tensor once and not eight times. So for a plan each of its
  groups (tensor, pipeline, data) is a network of its own, as fast as the profile says for ranks so many and so far apart.
  ``flat_step_s`` is the price where networks are the cluster's levels, as in Calculon's own system files; there the fastest
  way to lay groups on networks is taken. Calculon's own search has the flat ones, as it must know them beforehand.
- Calculon knows no embedding, no loss and no stages of its own choosing: blocks are shared out as evenly as can be.
- Its attention is not fused: it writes the scores. What our runtime does (fused attention, which keeps no scores and
  makes them again in backward) is nearest to its ``attn_only``, as is the selective recomputation of Korthikanti et al.;
  its ``none`` would keep them all. So ``none`` of ours is ``attn_only``, for either side.
- Its ``optimizer_sharding`` shards the optimizer's state and, once reduced, the gradients, and sends either once a step: it
  stands for ZeRO-1 and ZeRO-2.
- Of options that our plans do not decide, either side has the same: tensor parallel communication is not overlapped, data
  parallel communication is; and of the ways to lay tensor, pipeline and data ranks on networks the fastest is taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.hardware.level import bus_factor

if TYPE_CHECKING:
    from autoplan.graph.sources.sizes import DecoderConfig
    from autoplan.hardware import Cluster
    from autoplan.hardware.level import Level
    from autoplan.plan import Plan

__all__ = [
    "FORBID",
    "MEGATRON",
    "Calculon",
    "NotSaid",
    "application_of",
    "executions_of",
    "pins_of",
    "system_of",
]

_DTYPE = {"bf16": "bfloat16", "fp16": "float16"}
_MESSAGE = 64 * 2**20  # bytes at which a network's bandwidth is read
# of our space, what keeps a plan within Calculon's
FORBID = (
    *(("schedule", name) for name in ("gpipe", "zb-h1", "zbv", "dualpipe-v")),
    ("zero", 2), ("zero", 3), ("recompute", "mixed"), *(("recompute", way) for way in ("selective", "ops1", "ops2", "offload")),
)  # fmt: skip
# of what ``build_decoder`` makes: columns of the first products are cut, rows of the second (Shoeybi et al., 2019)
MEGATRON = {
    "gpt": {
        **{f"*.attn.{name}_proj": "cut o" for name in "qkv"},
        "*.attn.c_proj": "cut i", "*.mlp.c_fc": "cut o", "*.mlp.c_proj": "cut i",
    },
    "rotary": {
        **{f"*.self_attn.{name}_proj": "cut o" for name in "qkv"},
        "*.self_attn.o_proj": "cut i", "*.mlp.gate_proj": "cut o", "*.mlp.up_proj": "cut o", "*.mlp.down_proj": "cut i",
    },
}  # fmt: skip


class NotSaid(Exception):
    """What Calculon cannot express, and why."""


def application_of(size: DecoderConfig) -> dict[str, int]:
    """Raises NotSaid for a model with layers that Calculon does not have."""
    if size.experts:
        raise NotSaid("experts: Calculon's blocks are dense")
    if size.family != "gpt":
        raise NotSaid("a gated MLP: Calculon's has two matrices")
    if size.key_heads != size.heads:
        raise NotSaid("grouped key and value heads: Calculon has one for each head, or one for all")
    return {
        "hidden": size.hidden,
        "feedforward": size.ffn,
        "seq_size": size.seq,
        "attn_heads": size.heads,
        "attn_size": size.head_size,
        "num_blocks": size.layers,
    }


def system_of(
    cluster: Cluster, precision: str, *, plan: Plan | None = None, endless: bool = False
) -> dict[str, Any]:
    """The profile as Calculon's system, with the networks of ``plan``'s tensor, pipeline and data groups, or else of the
    cluster's levels. With ``endless`` memory everything fits, and so has a price."""
    device, dtype = cluster.device, _DTYPE[precision]
    usable = 2.0**60 if endless else float(device.usable_bytes)
    return {
        "matrix": {dtype: {"tflops": device.peak(dtype) / 1e12, "gflops_efficiency": _matrix_curve(cluster, dtype)}},
        "vector": {dtype: {"tflops": device.peak("float32") / 1e12, "gflops_efficiency": [[0, 1.0]]}},
        "mem1": {
            "GiB": usable / 2**30,
            "GBps": device.memory_bytes_per_s / 1e9,
            "MB_efficiency": _memory_curve(cluster),
        },
        "mem2": {"GiB": 0, "GBps": 1, "MB_efficiency": [[0, 1.0]]},
        "processing_mode": "roofline",
        "networks": _networks(cluster) if plan is None else _group_networks(cluster, plan),
    }  # fmt: skip


def _matrix_curve(cluster: Cluster, dtype: str) -> list[list[float]]:
    """[GFLOP, share of the peak] for square products, large ones first, by factors of two."""
    peak, curve = cluster.device.peak(dtype), []
    for power in range(14, -11, -1):
        flops = 2.0**power * 1e9
        side = (flops / 2) ** (1 / 3)
        seconds = float(cluster.device.gemm_time_s((1, side, side, side), dtype))
        curve.append([2.0**power, min(1.0, flops / seconds / peak)])
    return [*curve, [0, curve[-1][1]]]


def _memory_curve(cluster: Cluster) -> list[list[float]]:
    """[MB, share of the bandwidth], likewise."""
    peak, curve = cluster.device.memory_bytes_per_s, []
    for power in range(12, -7, -1):
        nbytes = 2.0**power * 1e6
        seconds = float(cluster.device.memory_time_s(nbytes))
        curve.append([2.0**power, min(1.0, nbytes / seconds / peak)])
    return [*curve, [0, curve[-1][1]]]


def _networks(cluster: Cluster) -> list[dict[str, Any]]:
    """One for each level: that of ranks which are as far apart as its neighbours are."""
    networks, stride = [], 1
    for level in cluster.levels:
        if level.size > 1:
            networks.append(_network(cluster, level.size, stride, stride * level.size))
        stride *= level.size
    return networks or [_network(cluster, 1, 1, 1)]


def _group_networks(cluster: Cluster, plan: Plan) -> list[dict[str, Any]]:
    """Of tensor, pipeline and data groups; ranks are numbered in the order tensor, data, pipeline."""
    data = plan.dp * plan.fsdp
    groups = ((plan.tp, 1), (plan.pp, plan.tp * data), (data, plan.tp))
    return [_network(cluster, size, stride, size) for size, stride in groups]


def _network(cluster: Cluster, members: int, stride: int, size: int) -> dict[str, Any]:
    """What ``members`` ranks that are ``stride`` apart have: a bandwidth over the busiest link, and by op its share."""
    if members == 1:
        return _CONNECTED | {"size": size}

    def seconds(kind: str, nbytes: float) -> float:
        return float(cluster.collective_time_s(kind, nbytes, members, stride))

    def rate(kind: str) -> float:
        return bus_factor(kind, members) * _MESSAGE / (seconds(kind, _MESSAGE) - seconds(kind, 1.0))

    full = rate("all_reduce")
    return {
        "bandwidth": full / 1e9,
        "efficiency": 1.0,
        "size": size,
        "latency": seconds("all_reduce", 1.0),
        "ops": {
            "p2p": [full / rate("send_recv"), None],
            "all_reduce": [2.0, -1],
            **{kind: [full / rate(kind), -1] for kind in ("reduce_scatter", "all_gather")},
        },
        "must_be_filled": False,
        "processor_usage": _taken(cluster, _outermost(cluster, members * stride)),
    }


_CONNECTED: dict[str, Any] = {
    "bandwidth": 1, "efficiency": 1.0, "latency": 0.0, "must_be_filled": False, "processor_usage": 0.0,
    "ops": {"p2p": [1.0, None], "all_reduce": [2.0, -1], "reduce_scatter": [1.0, -1], "all_gather": [1.0, -1]},
}  # fmt: skip
"""Of a group of one, which sends nothing."""


def _outermost(cluster: Cluster, span: int) -> Level:
    """The level that ranks so far apart meet on."""
    reach = 1
    for level in cluster.levels:
        reach *= level.size
        if span <= reach:
            return level
    return cluster.levels[-1]


def _taken(cluster: Cluster, level: Level) -> float:
    """Share of the device that a collective of the level takes from compute, 0 where the profile does not say."""
    factors = [
        slow.compute_factor
        for slow in cluster.slowdown
        if slow.level == level.name and slow.communication == "any" and slow.compute == "any"
    ]
    return 1 - 1 / max(factors) if factors and max(factors) > 1 else 0.0


def pins_of(size: DecoderConfig, sharded: bool) -> dict[str, Any]:
    """What holds our search within Calculon's space, beside ``FORBID``: its state is sharded among all data ranks or none."""
    return {"cp": 1, **MEGATRON[size.family], **({"dp": 1} if sharded else {"fsdp": 1, "zero": 0})}


def executions_of(plan: Plan, cluster: Cluster | None = None) -> list[dict[str, Any]]:
    """The plan as executions: one on the networks of its own groups, or on a ``cluster``'s levels one for each way to lay
    its groups on them. Raises NotSaid for what it holds beyond."""
    data = plan.dp * plan.fsdp
    boundaries = {"R": "ar", "S(1)": "rs_ag"}
    said = (
        (plan.cp == 1 and plan.ep == 1, "context or expert parallel"),
        (plan.zero < 3, "ZeRO-3: Calculon's parameters are whole"),
        (plan.dp == 1 or plan.fsdp == 1, "HSDP: Calculon shards among all data ranks or none"),
        (str(plan.schedule) in ("1f1b", "interleaved"), f"the schedule {plan.schedule}"),
        (
            plan.recompute in ("none", "full"),
            f"recomputation {plan.recompute}: Calculon's blocks are all alike",
        ),
        (plan.tp == 1 or plan.boundary in boundaries, f"the layout {plan.boundary} between blocks"),
    )
    for holds, what in said:
        if not holds:
            raise NotSaid(what)
    if cluster is None:
        ways = [(0, 1, 2)]
    else:
        tiers = range(len(_networks(cluster)))
        ways = list(product(*(tiers if size > 1 else (0,) for size in (plan.tp, plan.pp, data))))
    return [
        {
            "num_procs": plan.world_size,
            "tensor_par": plan.tp,
            "pipeline_par": plan.pp,
            "data_par": data,
            "tensor_par_net": tensor,
            "pipeline_par_net": pipeline,
            "data_par_net": outer,
            "batch_size": plan.global_batch,
            "microbatch_size": plan.micro_batch,
            "datatype": _DTYPE[str(plan.precision)],
            "fused_activation": True,
            "attention_type": "multihead",
            "activation_recompute": "full" if plan.recompute == "full" else "attn_only",
            "pipeline_interleaving": plan.vpp,
            "optimizer_sharding": data > 1 and plan.zero > 0,
            "tensor_par_comm_type": boundaries[plan.boundary] if plan.tp > 1 else "ar",
            "tensor_par_overlap": "none",
            "seq_par_ag_redo": False,
            "data_par_overlap": data > 1,
            "weight_offload": False,
            "activations_offload": False,
            "optimizer_offload": False,
            "training": True,
        }
        for tensor, pipeline, outer in ways
    ]


class Calculon:
    """A process of ``python`` that has imported the checkout at ``path``."""

    def __init__(self, path: Path, python: str = sys.executable) -> None:
        if not (path / "calculon" / "llm").is_dir():
            raise SystemExit(f"{path}: no checkout of github.com/calculon-ai/calculon")
        worker = Path(__file__).parent / "calculon_worker.py"
        self._process = subprocess.Popen(
            [python, str(worker), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def price(self, application: dict[str, int], cluster: Cluster, plan: Plan) -> dict[str, Any]:
        """Seconds of a step by parts, bytes of a device, and whether these are there. Raises NotSaid."""
        precision = str(plan.precision)
        group = self._fastest(
            application, system_of(cluster, precision, plan=plan, endless=True), executions_of(plan)
        )
        flat = self._fastest(
            application, system_of(cluster, precision, endless=True), executions_of(plan, cluster)
        )
        return short(group, cluster) | {"flat_step_s": flat["total_time"]}

    def _fastest(
        self, application: dict[str, int], system: dict[str, Any], said: list[dict[str, Any]]
    ) -> Any:
        answers = self._ask({"application": application, "system": system, "executions": said})
        priced = [answer["stats"] for answer in answers if "stats" in answer]
        if not priced:
            raise NotSaid(f"Calculon refuses it: {answers[0]['error']}")
        return min(priced, key=lambda stats: stats["total_time"])

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("Calculon's process ended; its message is above")
        return json.loads(line)


def short(stats: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    """Of Calculon's figures, those that we compare."""
    parts = {
        "compute": stats["fw_time"] + stats["bw_time"],
        "recompute": stats["recompute_time"] + stats["recomm_exposed_time"],
        "bubble": stats["bubble_time"],
        "tp": stats["tp_comm_exposed_time"],
        "pp": stats["pp_comm_exposed_time"],
        "dp": stats["dp_comm_exposed_time"],
        "optimizer": stats["optim_step_time"],
    }
    need = stats["proc_mem_tier1_cap_req"]
    return {
        "step_s": stats["total_time"],
        "parts_s": parts,
        "memory_bytes": need,
        "fits": need <= cluster.device.usable_bytes,
    }
