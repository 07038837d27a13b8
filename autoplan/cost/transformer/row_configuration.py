"""The configuration of a table's row: degrees, batch, precision and program, blanks taken as usual."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from autoplan.cost.transformer.configuration import Configuration, Recompute
from autoplan.cost.transformer.row_fields import Fields, precision_name, recompute_of, zero_of
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import SOFTWARE, Software
from autoplan.errors import InputError

__all__ = ["RowSetup", "row_setup"]

PACKED = 8
USUAL_DATA_RANKS = 16
_OLD = ("megatron", "megatron-deepspeed")
_PROGRAMS: tuple[tuple[str, str], ...] = (
    (r"deepspeed", "megatron-deepspeed"),
    (r"maxtext|jax|paxml|xla|flax", "xla"),
    (r"composer|fsdp|titan|accelerate|lightning|llm-foundry|kempner|colossal", "fsdp"),
    (r"nemo|bridge|mcore|megatron-core|nnscaler", "megatron-core"),
)


@dataclass(frozen=True, slots=True)
class RowSetup:
    """Everything of a row beside its model and its cluster.

    Args:
        alternatives: other values for blank columns, one after the other to be tried where the usual ones
            do not fit: what ran did fit.
    """

    configuration: Configuration
    gpus: int
    precision: str
    software: Software
    alternatives: tuple[dict[str, str], ...] = ()


def row_setup(fields: Fields, shape: Transformer, gpu: str, *, coherent: bool = False) -> RowSetup:
    """Degrees, batch and program of a row. Raises InputError naming the column that is wrong.

    Args:
        coherent: the device's link to the host's memory is fast enough to keep activations there.
    """
    precision = _precision(fields, gpu)
    software = _software(fields, gpu, precision)
    if (
        software.name == "megatron-core-plain"
        and float(shape.vectors) > 5
        and not fields.noted("hidden-dropout=0")
    ):
        software = replace(software, dropout=True)  # Megatron's default for GPT
    old = software.name in _OLD
    degrees = _degrees(fields, shape)
    tp, pp, cp, dp = degrees["tp"], degrees["pp"], degrees["cp"], degrees["dp"]
    sp = fields.flag("sp")
    if sp is None:
        sp = tp > 1 and not old
        if tp > 1:
            fields.assume("sp", int(sp))
    zero = zero_of(fields.text("zero_stage"))
    if zero is None:
        zero = {"fsdp": 3, "xla": 3}.get(software.name, 0 if old else 1)
        if dp * cp > 1:
            fields.assume("zero_stage", zero)
    recompute = recompute_of(fields.text("recompute"))
    if recompute is None:
        recompute = {"xla": Recompute.SELECTIVE}.get(software.name, Recompute.FULL if old else Recompute.NONE)
        fields.assume("recompute", recompute.name.lower())
    flash = fields.flag("flash_attention")
    if flash is None:
        flash = not (old or fields.noted("transformer-impl=local"))
        fields.assume("flash_attention", int(flash))
    micro_batch, micro_batches = _batch(fields, dp, pp)
    configuration = Configuration(
        seq=fields.need("seq_len", 2048 if old else 4096, ""),
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        tp=tp,
        sp=sp and tp > 1,
        pp=pp,
        vpp=_chunks(fields, pp, shape, software),
        cp=cp,
        ep=degrees["ep"],
        etp=degrees["etp"],
        dp=dp,
        zero=zero,
        recompute=int(recompute),
        flash=flash,
        packed=_packed(fields),
        frozen=fields.text("task").lower() == "lora",
        parked=_parked(fields, shape),
        host_optimizer=_host_optimizer(fields),
    )
    return RowSetup(
        configuration,
        tp * pp * cp * dp,
        precision,
        software,
        _alternatives(
            fields,
            shape,
            recompute,
            degrees,
            coherent=coherent,
            offloads=zero == 3 and software.partition_gradients,
        ),
    )


def _alternatives(
    fields: Fields,
    shape: Transformer,
    recompute: Recompute,
    degrees: Mapping[str, int],
    *,
    coherent: bool,
    offloads: bool,
) -> tuple[dict[str, str], ...]:
    """For blanks, in the order of what they cost: smaller micro-batches, more recomputation (after activations
    of half and of all layers on a host that is near), with ZeRO-3 of a program that ``offloads`` what the host
    can keep, and with no degree stated more tensor ranks of a node."""
    smaller = [{"micro_batch": "1"}] if not fields.text("micro_batch") else []
    again: list[dict[str, str]] = []
    if not fields.text("recompute"):
        again = [{"recompute": r.name.lower()} for r in Recompute if r > recompute]
        if coherent and fields.number("offload_layers") is None:
            layers = int(shape.layers)
            again[-1:-1] = [{"offload_layers": str(n)} for n in (-(-layers // 2), layers)]
    unsaid = fields.number("offload_layers") is None and fields.flag("offload_optimizer") is None
    if offloads and unsaid and not fields.noted("offload"):
        everything = {"offload_optimizer": "1", "offload_layers": str(int(shape.layers))}
        again += [{"offload_optimizer": "1"}, everything]
    tensor: list[dict[str, str]] = []
    if not any(fields.text(name) for name in ("tp", "dp")):
        room, heads = degrees["dp"], int(shape.heads)
        tensor = [{"tp": str(t)} for t in (2, 4, 8) if room % t == 0 and heads % t == 0]
    ways = product([{}, *tensor], [{}, *again], [{}, *smaller])
    return tuple(t | a | s for t, a, s in ways if t or a or s)


def _parked(fields: Fields, shape: Transformer) -> float:
    """Share of the layers whose activations go to the host: a column, or what the notes say."""
    layers = fields.number("offload_layers")
    if layers is None and (match := fields.noted(r"cpu_offloading_num_layers=(\d+)|full cpu offload")):
        layers = float(match[1] or shape.layers)
        fields.assume("offload_layers", int(layers), "by the notes")
    return min((layers or 0.0) / float(shape.layers), 1.0)


def _host_optimizer(fields: Fields) -> bool:
    """Whether the optimizer is the host's: a column, or what the notes say."""
    stated = fields.flag("offload_optimizer")
    if stated is None and fields.noted(r"opt(imizer)?[ _-]offload[ =:_-]*(y|true|cpu)|full cpu offload"):
        fields.assume("offload_optimizer", 1, "by the notes")
        return True
    return bool(stated)


def _precision(fields: Fields, gpu: str) -> str:
    """The format; blank, or bf16 where the device has none (V100), is taken as the usual one."""
    name = precision_name(fields.text("precision"))
    old = "v100" in gpu.lower()
    if name is None:
        name = "fp16" if old else "bf16"
        fields.assume("precision", name)
    elif old and name == "bf16":
        name = "fp16"
        fields.assume("precision", name, "this device has no bf16")
    return name


def _software(fields: Fields, gpu: str, precision: str) -> Software:
    """The program by the ``framework`` column; without it, by what goes with the device and precision."""
    text = fields.text("framework").lower()
    flash = fields.flag("flash_attention")
    test = "functional test" in fields.text("task").lower()
    plain = test or fields.noted(r"no comm overlap|transformer-impl=") is not None
    name = next((name for pattern, name in _PROGRAMS if re.search(pattern, text)), None)
    if name is None:
        sharded = "fsdp" in fields.text("zero_stage").lower()
        past = "v100" in gpu.lower() or ("a100" in gpu.lower() and (flash is False or precision == "fp16"))
        name = "fsdp" if sharded else "megatron" if past and not flash else "megatron-core"
        if not text:
            fields.assume("framework", name)
    if name == "megatron-deepspeed" and flash:
        name = "megatron-core"
    if plain and name in ("megatron", "megatron-core"):
        name = "megatron-core-plain"
    found = SOFTWARE[name]
    if re.search(r"composer|llm-foundry", text):  # a loss of 16 bits; metrics go over the logits once more
        found = replace(found, logit_bytes=4)
    if re.search(r"hf trainer|transformers|hugging", text):  # logits, shifted, and their log-softmax
        found = replace(found, logit_bytes=6)
    if re.search(r"megatron-(lm|core)", text) and precision != "fp16" and "nemo" not in text:
        found = replace(found, main_gradients=True, logit_bytes=max(found.logit_bytes, 6))  # its defaults
    return replace(
        found,
        overlap_ep=fields.noted(r"moe_a2a_overlap") is not None,
        deduplicated=fields.noted(r"moe_dispatcher=\w*ep\b|token-dispatcher-type=flex") is not None,
        routed_in_graph=fields.noted(r"cuda_graph=(full_iteration|.*moe_)") is not None,
    )


def _degrees(fields: Fields, shape: Transformer) -> dict[str, int]:
    """tp, pp, cp, ep, etp and dp that multiply to the GPUs. Raises InputError where they cannot."""
    gpus = fields.count("gpus")
    pp, cp = fields.count("pp") or 1, fields.count("cp") or 1
    tp, dp, ep = fields.count("tp"), fields.count("dp"), fields.count("ep") or 1
    if not fields.text("pp"):
        fields.assume("pp", 1)
    if tp is None:
        whole = gpus is not None and dp is not None and gpus % (dp * pp * cp) == 0
        tp = gpus // (dp * pp * cp) if whole and gpus is not None and dp is not None else 1
        fields.assume("tp", tp)
    etp = _expert_tensor(fields, shape, tp, ep, (dp or 1) * cp)
    if dp is None:
        dp = _data_degree(fields, gpus, tp * pp * cp, -(-ep * etp // (tp * cp)))
    world = tp * pp * cp * dp
    if gpus is None:
        fields.assume("gpus", world)
    elif gpus != world:
        if world * ep != gpus:
            raise InputError(
                "gpus", gpus, f"tp*pp*cp*dp = {world}", "correct gpus or a degree: they must multiply to it"
            )
        dp *= ep  # the mesh of programs that keep ep beside dp
        fields.assume("dp", dp, "ep is an axis of its own here")
    if ep > 1 and (tp * cp * dp) % (ep * etp):
        raise InputError("ep", ep, f"a divisor of tp*cp*dp = {tp * cp * dp}", "correct ep or a degree")
    return {"tp": tp, "pp": pp, "cp": cp, "ep": ep, "etp": etp, "dp": dp}


def _data_degree(fields: Fields, gpus: int | None, others: int, least: int) -> int:
    if gpus is None:
        whole, micro = fields.count("global_batch"), fields.count("micro_batch") or 1
        room = USUAL_DATA_RANKS if whole is None else min(USUAL_DATA_RANKS, max(whole // micro, 1))
        usual = max(least, 1 << (room.bit_length() - 1))
        fields.assume("dp", usual, "neither gpus nor dp is given")
        return usual
    if gpus % others:
        raise InputError("gpus", gpus, f"a multiple of tp*pp*cp = {others}", "correct gpus or a degree")
    fields.assume("dp", gpus // others)
    return gpus // others


def _expert_tensor(fields: Fields, shape: Transformer, tp: int, ep: int, data: int) -> int:
    """Tensor degree of the experts: as noted; else 1 for many small experts, and tp for few large ones."""
    if not shape.moe or tp == 1:
        return 1
    if match := fields.noted(r"(?:ETP=|expert-TP |expert-tensor-parallel-size=)(\d+)"):
        return int(match[1])
    etp = 1 if float(shape.experts) >= 16 or ep > data or (tp * data) % (ep * tp) else tp
    fields.assume("expert tp", etp)
    return etp


def _chunks(fields: Fields, pp: int, shape: Transformer, software: Software) -> int:
    """Where not stated: 1, or in Megatron-Core's recipes the most chunks, up to 8, that layers allow."""
    vpp = fields.count("vpp")
    if vpp is not None:
        return vpp if pp > 1 else 1
    if pp == 1:
        return 1
    each, left = divmod(int(shape.layers), pp)
    usual = 1
    if software.name == "megatron-core" and not left:
        usual = max(v for v in range(1, 9) if each % v == 0)
    fields.assume("vpp", usual)
    return usual


def _packed(fields: Fields) -> int:
    """Documents in a sample: fine-tuning recipes pack short ones, whose lengths no table gives."""
    if fields.text("task").lower() not in ("sft", "lora"):
        return 1
    fields.assume("documents in a sample", PACKED, "packed fine-tuning")
    return PACKED


def _batch(fields: Fields, dp: int, pp: int) -> tuple[int, int]:
    """Samples of a micro-batch, and micro-batches of a step (rounded up)."""
    micro, whole = fields.count("micro_batch"), fields.count("global_batch")
    if whole is None:
        micro = fields.need("micro_batch", 1, "")
        fields.assume("global_batch", micro * dp * pp * (4 if pp > 1 else 1))
        return micro, pp * (4 if pp > 1 else 1)
    each = -(-whole // dp)
    if micro is None:
        micro = 1 if pp > 1 else next(b for b in (4, 2, 1) if each % b == 0)
        fields.assume("micro_batch", micro)
    if micro > each:
        fields.assume("micro_batch", each, "the whole share of a data rank")
        micro = each
    return micro, -(-each // micro)
