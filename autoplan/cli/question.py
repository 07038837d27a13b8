"""What a search is asked, as options that several commands share: the model, the batch, the cluster, what is held."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import one_of, ratio, whole_number
from autoplan.errors import InputError
from autoplan.plan.schedule import Schedule

if TYPE_CHECKING:
    from autoplan.cli.progress import LateProgress
    from autoplan.graph.ir import ModelGraph
    from autoplan.graph.routing import Routing
    from autoplan.graph.sources import ModelSource
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = [
    "add_cluster",
    "add_experts",
    "add_job",
    "add_pins",
    "add_rules",
    "add_size",
    "asked",
    "forbidden",
    "graphs_of",
    "job_of",
    "pins_of",
    "routing_of",
]

_OPTIMIZER_STATES = {"adamw": 2, "sgd": 0}
_PINS = ("tp", "cp", "ep", "pp", "vpp", "dp", "fsdp", "micro_batch", "schedule")
_ASKED = (
    "model",
    "seq",
    "optimizer",
    "cluster",
    "nodes",
    "gpus",
    "moe_imbalance",
    "moe_histogram",
    "moe_capacity",
)


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add what to train."""
    job = parser.add_argument_group("what to train")
    job.add_argument(
        "model",
        metavar="MODEL",
        help="a built-in size (llama3-8b), a Hugging Face config.json or its directory, "
        "or a factory (package.module:factory, path/to/file.py:factory)",
    )
    job.add_argument(
        "--global-batch",
        metavar="N",
        required=True,
        type=whole_number("--global-batch"),
        help="samples in one optimizer step, over all GPUs",
    )
    job.add_argument(
        "--seq",
        metavar="N",
        type=whole_number("--seq"),
        help="tokens in a sample (default: the model's own length)",
    )
    job.add_argument(
        "--precision",
        metavar="DTYPE",
        default="bf16",
        type=one_of("--precision", "bf16", "fp32", "fp64"),
        help="bf16 (with fp32 master weights), fp32 or fp64 (default: bf16)",
    )
    job.add_argument(
        "--optimizer",
        metavar="NAME",
        default="adamw",
        type=one_of("--optimizer", *_OPTIMIZER_STATES),
        help="adamw (two moments per parameter) or sgd (none) (default: adamw)",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add where to train it."""
    cluster = parser.add_argument_group("where to train it")
    cluster.add_argument(
        "--cluster",
        metavar="NAME|FILE|PARTS",
        required=True,
        help="a shipped or measured hardware profile, or a TOML file (measure one with `autoplan profile`); or two types "
        "of device, PROFILE:NODES+PROFILE:NODES, the nodes of the first numbered first, as a100-80-sxm:4+h100-sxm:4: "
        "each pipeline stage then lies on one type (schedule 1f1b, pp such that stages do not straddle)",
    )
    add_size(cluster)


def add_size(cluster: Any) -> None:
    """Add ``--nodes`` and ``--gpus``."""
    size = cluster.add_mutually_exclusive_group()
    size.add_argument(
        "--nodes",
        metavar="N",
        type=whole_number("--nodes"),
        help="nodes of it (default: as the profile says)",
    )
    size.add_argument(
        "--gpus", metavar="N", type=whole_number("--gpus"), help="GPUs of it, in place of --nodes"
    )


def add_experts(parser: argparse.ArgumentParser) -> None:
    """Add how routed experts are loaded."""
    experts = parser.add_argument_group(
        "routed experts",
        "How a router will spread tokens is not known before training; these are assumptions.",
    )
    load = experts.add_mutually_exclusive_group()
    load.add_argument(
        "--moe-imbalance",
        metavar="X",
        type=ratio("--moe-imbalance"),
        default=1.0,
        help="tokens of the busiest expert over the mean (default: 1, perfect balance)",
    )
    load.add_argument(
        "--moe-histogram",
        metavar="FILE",
        help="measured tokens of each expert, in order: a JSON list, or numbers between blanks or commas",
    )
    experts.add_argument(
        "--moe-capacity",
        metavar="X",
        type=ratio("--moe-capacity"),
        help="price expert buffers of this many times the mean load; tokens are never dropped "
        "(default: room for every token on each rank, as programs of autoplan have)",
    )


def add_pins(parser: argparse.ArgumentParser) -> None:
    """Add what to hold fixed."""
    pins = parser.add_argument_group("decisions to hold fixed", "The search completes the rest around them.")
    for name, meaning in (
        ("tp", "GPUs that share each op (tensor parallel)"),
        ("cp", "GPUs that share each sequence (context parallel)"),
        ("ep", "data ranks that share out the experts of a layer (expert parallel)"),
        ("pp", "GPUs that one sample passes through (pipeline parallel)"),
        ("vpp", "stages that each of these GPUs holds (virtual stages)"),
        ("dp", "whole copies of the training state (data parallel)"),
        ("fsdp", "GPUs that shard one copy of it"),
        ("micro-batch", "samples that a GPU runs at once"),
    ):
        pins.add_argument(f"--{name}", metavar="N", type=whole_number(f"--{name}"), help=meaning)
    pins.add_argument(
        "--schedule",
        metavar="NAME",
        type=one_of("--schedule", *Schedule),
        help=f"the order of micro-batches in a pipeline: {', '.join(Schedule)}",
    )
    pins.add_argument(
        "--zero",
        metavar="N",
        type=one_of("--zero", "0", "1", "2", "3"),
        help="what fsdp shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters",
    )
    recompute = pins.add_mutually_exclusive_group()
    recompute.add_argument(
        "--recompute",
        metavar="WHAT",
        type=one_of("--recompute", "none", "full", "selective", "ops1", "ops2", "offload"),
        help="what repeated blocks run again in backward: none, full, selective (the attention core), ops1 or ops2 (the "
        "ops that free most bytes for their seconds, or all that is worth it), offload (copies on the host instead)",
    )
    recompute.add_argument(
        "--no-recompute",
        action="store_const",
        const="none",
        dest="recompute",
        help="the same as --recompute none",
    )
    add_rules(pins)


def add_rules(pins: Any) -> None:
    """Add ``--pin`` and ``--forbid``, which name any decision."""
    pins.add_argument(
        "--pin",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_decision("--pin"),
        help="any decision: a degree, micro_batch, num_micro_batches, zero, recompute, boundary=R, or one op's "
        "layout, BLOCK.OP='cut o' (blocks and ops as `autoplan show` names them); may be repeated",
    )
    pins.add_argument(
        "--forbid",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_decision("--forbid"),
        help="a value that a decision must not have, named likewise; may be repeated",
    )


def _decision(option: str) -> Any:
    def convert(text: str) -> tuple[str, int | str]:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(option, text, "KEY=VALUE", f"give {option} tp=4")
        value = value.strip()
        return name.strip().replace("-", "_") if "." not in name else name.strip(), (
            int(value) if value.isascii() and value.isdecimal() and len(value) <= 18 else value
        )

    return convert


def asked(args: argparse.Namespace) -> dict[str, int | float | str]:
    """The question as a plan keeps it, for commands that ask it again: what was given, by option."""
    given = {name: getattr(args, name, None) for name in _ASKED}
    usual = {"optimizer": "adamw", "moe_imbalance": 1.0}
    return {name: value for name, value in given.items() if value is not None and value != usual.get(name)}


def forbidden(args: argparse.Namespace) -> list[tuple[str, int | str]]:
    """What ``--forbid`` says."""
    return list(args.forbid)


def pins_of(args: argparse.Namespace) -> dict[str, int | str]:
    """The decisions to hold. Raises InputError for one that is given twice."""
    pins: dict[str, int | str] = {
        name: getattr(args, name) for name in _PINS if getattr(args, name) is not None
    }
    if args.zero is not None:
        pins["zero"] = int(args.zero)
    if args.recompute is not None:
        pins["recompute"] = args.recompute
    for name, value in args.pin:
        if pins.get(name, value) != value:
            raise InputError("--pin", f"{name}={value}", f"one value, not also {pins[name]}", "leave one out")
        pins[name] = value
    return pins


def job_of(args: argparse.Namespace, source: ModelSource) -> Job:
    """The job that the options describe."""
    from autoplan.plan import Job, Precision

    return Job(
        global_batch=args.global_batch,
        tokens_per_sample=source.tokens_per_sample,
        precision=Precision(args.precision),
        optimizer_states=_OPTIMIZER_STATES[args.optimizer],
    )


def routing_of(args: argparse.Namespace) -> Routing:
    """How routed experts are taken to be loaded."""
    from autoplan.graph.routing import Routing

    if args.moe_histogram is not None:
        return Routing.read(args.moe_histogram, args.moe_capacity)
    return Routing(args.moe_imbalance, args.moe_capacity)


def graphs_of(
    source: ModelSource, job: Job, cluster: AnyCluster, routing: Routing, progress: LateProgress
) -> Any:
    """``graph_at``: the model traced for a number of samples, each number once."""
    progress.update(f"building {source.name}")
    import torch

    from autoplan.graph.trace import trace

    with torch.device("meta"):
        model = source.build()

    @functools.cache
    def graph_at(micro_batch: int) -> ModelGraph:
        progress.update(f"tracing {source.name} at micro-batch {micro_batch}")
        return trace(
            model,
            source.example_batch(micro_batch),
            source.loss,
            job.precision,
            source.name,
            device=cluster.types[0].device.kind,
            routing=routing,
        )

    return graph_at
