"""Our cost model and hardware profile as the profiles that Galvatron's search reads, and its plan as ours.

Galvatron (Miao et al., VLDB 2023; package ``hetu-galvatron``) measures a model's layers and a cluster's collectives, and
searches on those files. Here they are written from what our model says of the same layers, so that both see one hardware:

- forward milliseconds of a block, and of all the rest, for micro-batches of 1 to 10 samples (its mode ``batch``);
- MB of a block's parameters (in fp32, as it counts), and of what a sample leaves for backward under each tp, with the
  sequence shared among tensor ranks, or when recomputed; the same of embedding and loss, with 16 bytes of state a parameter;
- GB/s of all-reduces among 2, 4, ... ranks that are neighbours or as far apart as can be, and of sends between stages;
- milliseconds of all-reduce and all-to-all by size within tp groups, and how much slower compute is beside communication.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calculon_model import MEGATRON, NotSaid
from peer_question import Decided, Question
from search_quality import with_endless_memory

from autoplan.hardware.level import bus_factor

if TYPE_CHECKING:
    from autoplan.cost.unit import UnitCost
    from autoplan.hardware import Cluster

__all__ = ["decided_by", "galvatron_question"]

_MB = 2**20
_MESSAGE = 256 * _MB
_STATE_BYTES = 16  # of a parameter: weight, gradient and two moments, as Galvatron counts in mixed precision


def galvatron_question(question: Question, *, uniform: bool) -> dict[str, Any]:
    """What ``galvatron_worker`` reads. ``uniform``: all layers alike (its option ``fine_grained_mode`` off)."""
    cluster, size = question.cluster, question.size
    nodes, node = cluster.nodes, cluster.node_size
    seq, degrees = size.seq, _powers(min(8, node, size.key_heads))
    deepest = max(power for power in _powers(cluster.world_size) if power <= size.layers)
    suffix = f"{nodes}nodes_{node}gpus_per_node.json"
    options = {
        "num_nodes": nodes, "num_gpus_per_node": node, "memory_constraint": int(cluster.device.usable_bytes / 2**30),
        "settle_bsz": question.batch, "max_tp_deg": degrees[-1], "max_pp_deg": deepest, "default_dp_type": "zero2",
        "mixed_precision": "bf16", "pipeline_type": "pipedream_flush", "time_profile_mode": "batch",
        "memory_profile_mode": "static", "fine_grained_mode": 0 if uniform else 1,
    }  # fmt: skip
    by_tp = {degree: _unit_costs(question, degree, 1) for degree in degrees}
    return {
        "options": options,
        "layers": size.layers,
        "hidden": size.hidden,
        "seq": seq,
        "files": {
            "computation_profiling_bf16_model.json": _times(question, seq),
            "memory_profiling_bf16_model.json": _memory(by_tp, seq),
            f"allreduce_bandwidth_{suffix}": all_reduce_rates(cluster),
            f"p2p_bandwidth_{suffix}": send_rates(cluster),
            "overlap_coefficient.json": {"overlap_coe": _overlap(cluster)},
            f"sp_time_{suffix}": tensor_times(cluster, degrees),
        },
    }


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _unit_costs(question: Question, degree: int, samples: int) -> tuple[UnitCost, UnitCost, UnitCost]:
    """Of embedding, block and loss on one of ``degree`` tensor ranks, as in Megatron-LM with sequence parallelism."""
    from autoplan.cost.price import unit_prices
    from autoplan.hardware import Cluster
    from autoplan.plan import Job
    from autoplan.search import search

    cluster = with_endless_memory(Cluster.of(question.profile, gpus=degree))
    job = Job(global_batch=samples, tokens_per_sample=question.size.seq)
    pin: dict[str, Any] = {
        "pp": 1,
        "cp": 1,
        "dp": 1,
        "fsdp": 1,
        "tp": degree,
        "zero": 0,
        "micro_batch": samples,
    }
    pin |= {"recompute": "none"}
    if degree > 1:
        pin |= {"boundary": "S(1)", **MEGATRON[question.size.family]}
    plan = search(question.graph, job, cluster, pin=pin, top=1, cures=False).plan
    if plan is None:
        raise NotSaid(f"a layer of {question.model} cannot be cut for {degree} ranks as in Megatron-LM")
    _, costs, _ = unit_prices(question.graph(samples), plan, job, cluster)
    (middle,) = (kind for kind in costs[0] if kind not in ("prologue", "epilogue"))
    return costs[0]["prologue"], costs[0][middle], costs[0]["epilogue"]


def _times(question: Question, seq: int) -> dict[str, float]:
    """Forward milliseconds of a sample."""
    times = {}
    for samples in range(1, 11):
        first, block, last = _unit_costs(question, 1, samples)
        times[f"layertype_0_bsz{samples}_seq{seq}"] = block.times.forward_s * 1e3 / samples
        rest_s = first.times.forward_s + last.times.forward_s
        times[f"layertype_other_bsz{samples}_seq{seq}"] = rest_s * 1e3 / samples
    return times


def _memory(by_tp: dict[int, tuple[UnitCost, UnitCost, UnitCost]], seq: int) -> dict[str, Any]:
    """MB, by tp."""
    _, whole, _ = by_tp[1]
    kept: dict[Any, float] = {degree: block.saved_bytes / _MB for degree, (_, block, _) in by_tp.items()}

    def state(*units: int) -> dict[int, float]:
        return {d: sum(costs[u].parameters for u in units) * _STATE_BYTES / _MB for d, costs in by_tp.items()}

    def left(*units: int) -> dict[int, float]:
        return {
            d: sum(costs[u].saved_bytes + costs[u].workspace_bytes for u in units) / _MB
            for d, costs in by_tp.items()
        }

    def other(*units: int) -> dict[int, Any]:
        return {seq: {"model_states": state(*units), "activation": left(*units)}}

    return {
        "layertype_0_sp": {
            seq: {
                "parameter_size": whole.parameters * 4 / _MB,
                "tp_activation_per_bsz_dict": {**kept, "checkpoint": whole.input_bytes / _MB},
            }
        },
        "other_memory_pp_off_sp": other(0, 2),
        "other_memory_pp_on_first_sp": other(0),
        "other_memory_pp_on_last_sp": other(2),
    }


def all_reduce_rates(cluster: Cluster) -> dict[str, float]:
    """GB/s over the busiest link, by ranks of a group, whether neighbours (1) or far apart (0)."""
    world, rates = cluster.world_size, {}
    for group in _powers(world)[1:]:
        for near, stride in ((1, 1), (0, world // group)):
            seconds = float(cluster.collective_time_s("all_reduce", _MESSAGE, group, stride))
            rates[f"allreduce_size_{group}_consec_{near}"] = (
                bus_factor("all_reduce", group) * _MESSAGE / seconds / 1e9
            )
    return rates


def send_rates(cluster: Cluster) -> dict[str, float]:
    """GB/s from a stage to the next, by stages."""
    world = cluster.world_size
    return {
        f"pp_size_{stages}": _MESSAGE
        / float(cluster.collective_time_s("send_recv", _MESSAGE, stages, world // stages))
        / 1e9
        for stages in _powers(world)[1:]
    }


def tensor_times(cluster: Cluster, degrees: list[int]) -> dict[str, float]:
    """Milliseconds of collectives among neighbours, by ranks and MB."""
    return {
        f"{short}_size_{degree}_{mb}MB_time": 1e3 * float(cluster.collective_time_s(kind, mb * _MB, degree))
        for short, kind in (("allreduce", "all_reduce"), ("all2all", "all_to_all"))
        for degree in degrees[1:]
        for mb in _powers(1024)
    }


def _overlap(cluster: Cluster) -> float:
    """How many times longer compute takes beside communication over the outermost level; 1 where not said."""
    outer = cluster.levels[-1].name
    factors = [
        slow.compute_factor
        for slow in cluster.slowdown
        if slow.level == outer and slow.communication == "any"
    ]
    return max([1.0, *factors])


def decided_by(plan: dict[str, Any], gpus: int, batch: int) -> Decided:
    """Galvatron's plan. Raises NotSaid where its layers differ in what ours cannot: tp, or how their state is sharded."""

    def listed(name: str) -> list[int]:
        return [int(item) for item in str(plan[name]).split(",")]

    tps, whole_shards = set(listed("tp_sizes_enc")), set(listed("dp_types_enc"))
    if len(tps) > 1:
        raise NotSaid(f"layers of different tp, {sorted(tps)}: a plan of ours has one")
    if len(whole_shards) > 1:
        raise NotSaid("layers of ZeRO-3 beside layers of ZeRO-2: a plan of ours has one")
    if 0 in listed("tp_consecutive_flags") and tps != {1}:
        raise NotSaid("tensor ranks that are no neighbours: ours are")
    if any(listed("use_sp")):
        raise NotSaid("DeepSpeed-Ulysses within the tensor ranks")
    (tp,), pp = tps, int(plan["pp_deg"])
    data = gpus // tp // pp
    if batch % (data * int(plan["chunks"])):
        raise NotSaid(
            f"{plan['chunks']} micro-batches of {batch} samples on {data} data ranks are not all alike"
        )
    return Decided(
        pp=pp,
        tp=tp,
        data=data,
        zero=3 if whole_shards == {1} else 2,
        micro_batch=batch // data // int(plan["chunks"]),
        sequence=True,
        recompute=tuple(bool(flag) for flag in listed("checkpoint")),
        layers=tuple(listed("pp_division")),
    )
