"""``autoplan search``: the fastest plan for a model on a cluster, with a bound that proves it."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import fraction, one_of, ratio, seconds, whole_number
from autoplan.cli.progress import LateProgress
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.graph.routing import Routing
    from autoplan.graph.sources import ModelSource
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Plan
    from autoplan.search.result import SearchResult

__all__ = ["add_parser", "run"]

_OPTIMIZER_STATES = {"adamw": 2, "sgd": 0}
_PINS = ("tp", "cp", "pp", "dp", "fsdp", "micro_batch")

_EPILOG = """\
examples:
  autoplan search llama3-8b --cluster h100-sxm --nodes 2 --global-batch 256
  autoplan search path/to/config.json --cluster h100-sxm --gpus 64 --seq 4096 --global-batch 512 --out plan.json
  autoplan search my_models.py:make --cluster cluster.toml --global-batch 64 --tp 2 --no-recompute --json

exit status: 0 a plan was found; 2 an input is wrong; 3 nothing fits (the message says what would)
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``search`` to the command line."""
    parser = subparsers.add_parser(
        "search",
        help="find the fastest plan for a model on a cluster, with a bound that proves it",
        description="Find the fastest parallel training plan for MODEL on a cluster, with a bound that proves it.",
        epilog=_EPILOG,
    )
    _add_job(parser)
    _add_cluster(parser)
    _add_experts(parser)
    _add_pins(parser)
    _add_search(parser)
    _add_output(parser)
    parser.set_defaults(run=run)


def _add_job(parser: argparse.ArgumentParser) -> None:
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


def _add_experts(parser: argparse.ArgumentParser) -> None:
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


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("where to train it")
    cluster.add_argument(
        "--cluster",
        metavar="NAME|FILE",
        required=True,
        help="a shipped or measured hardware profile, or a TOML file (measure one with `autoplan profile`)",
    )
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


def _add_pins(parser: argparse.ArgumentParser) -> None:
    pins = parser.add_argument_group("decisions to hold fixed", "The search completes the rest around them.")
    for name, meaning in (
        ("tp", "GPUs that share each op (tensor parallel)"),
        ("cp", "GPUs that share each sequence (context parallel)"),
        ("pp", "pipeline stages"),
        ("dp", "whole copies of the training state (data parallel)"),
        ("fsdp", "GPUs that shard one copy of it"),
        ("micro-batch", "samples that a GPU runs at once"),
    ):
        pins.add_argument(f"--{name}", metavar="N", type=whole_number(f"--{name}"), help=meaning)
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
        type=one_of("--recompute", "none", "full"),
        help="forward passes to run again in backward: none or full",
    )
    recompute.add_argument(
        "--no-recompute",
        action="store_const",
        const="none",
        dest="recompute",
        help="the same as --recompute none",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("how long to search")
    search.add_argument(
        "--gap",
        metavar="SHARE",
        type=fraction("--gap"),
        default=0.01,
        help="stop once no plan can be better by more than this share (default: 0.01)",
    )
    search.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=seconds("--time-limit"),
        help="stop then, with the best plan so far and its bound (default: none)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--top",
        metavar="N",
        type=whole_number("--top"),
        default=5,
        help="plans to show, the best included (default: 5)",
    )
    output.add_argument(
        "--out", metavar="FILE", help="write the plan as JSON, for `autoplan run` and parallelize(plan=…)"
    )
    output.add_argument(
        "--trace", metavar="FILE", help="write the plan's step, event by event, for ui.perfetto.dev"
    )
    output.add_argument(
        "--json", action="store_true", help="print the whole result as JSON instead of the report"
    )
    output.add_argument("--quiet", action="store_true", help="print neither report nor progress")


def run(args: argparse.Namespace) -> int:
    """Search, write ``--out``, print; the exit status is 3 when nothing fits."""
    from autoplan.graph.sources import load_source
    from autoplan.hardware import Cluster

    for option in ("--out", "--trace"):
        _check_out(option, getattr(args, option.strip("-")))
    with LateProgress(args.quiet) as progress:
        progress.update("reading the model and the cluster")
        cluster = Cluster.of(args.cluster, nodes=args.nodes, gpus=args.gpus)
        source = load_source(args.model, args.seq)
        job = _job(args, source)
        graph_at = _graphs(source, job, cluster, _routing(args), progress)
        result = _search(args, graph_at, job, cluster, progress)
        if args.trace and result.plan is not None:
            progress.update("writing the trace")
            _write_trace(args.trace, graph_at(result.plan.micro_batch), result.plan, job, cluster)
    if result.plan is None:
        return _tell_conflict(args, result)
    if args.out:
        from autoplan.plan import write_plan

        write_plan(result.plan, args.out)
    if args.json:
        _print_json(result.to_json())
    elif not args.quiet:
        _print_report(args, result, job, cluster)
    return 0


def _check_out(option: str, out: str | None) -> None:
    """Before a long search, that its answer will have a place."""
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(
            option, out, "a file in a directory that exists", "make the directory, or choose another path"
        )


def _job(args: argparse.Namespace, source: ModelSource) -> Job:
    from autoplan.plan import Job, Precision

    return Job(
        global_batch=args.global_batch,
        tokens_per_sample=source.tokens_per_sample,
        precision=Precision(args.precision),
        optimizer_states=_OPTIMIZER_STATES[args.optimizer],
    )


def _search(
    args: argparse.Namespace, graph_at: Any, job: Job, cluster: Cluster, progress: LateProgress
) -> SearchResult:
    from autoplan.search import search

    pins = _pins(args)
    try:
        return search(
            graph_at,
            job,
            cluster,
            pin=pins,
            gap=args.gap,
            time_limit_s=args.time_limit,
            progress=progress.update,
            top=args.top,
        )
    except InputError as error:
        if error.field not in pins:
            raise
        option = f"--{error.field.replace('_', '-')}"  # as the user wrote it
        raise type(error)(option, error.value, error.expected, error.remedy) from None


def _routing(args: argparse.Namespace) -> Routing:
    from autoplan.graph.routing import Routing

    if args.moe_histogram is not None:
        return Routing.read(args.moe_histogram, args.moe_capacity)
    return Routing(args.moe_imbalance, args.moe_capacity)


def _graphs(source: ModelSource, job: Job, cluster: Cluster, routing: Routing, progress: LateProgress) -> Any:
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
            device=cluster.device.kind,
            routing=routing,
        )

    return graph_at


def _pins(args: argparse.Namespace) -> dict[str, int | str]:
    pins: dict[str, int | str] = {
        name: getattr(args, name) for name in _PINS if getattr(args, name) is not None
    }
    if args.zero is not None:
        pins["zero"] = int(args.zero)
    if args.recompute is not None:
        pins["recompute"] = args.recompute
    return pins


def _write_trace(path: str, graph: ModelGraph, plan: Plan, job: Job, cluster: Cluster) -> None:
    import msgspec

    from autoplan.cost.plan_trace import plan_trace

    data = msgspec.json.encode(plan_trace(graph, plan, job, cluster))
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            "--trace", path, "a path that can be written", f"choose another ({reason})"
        ) from None


def _tell_conflict(args: argparse.Namespace, result: SearchResult) -> int:
    from autoplan.report import no_plan_error

    error = no_plan_error(result)
    if args.json:
        _print_json({**result.to_json(), **error.to_json()})
    line = f"no plan fits: {result.conflict.rstrip('.')}; {error.remedy}"
    print(f"autoplan: error: {' '.join(line.split())}", file=sys.stderr)
    return error.exit_status


def _print_report(args: argparse.Namespace, result: SearchResult, job: Job, cluster: Cluster) -> None:
    from autoplan.report import print_report, search_report

    print_report(search_report(result, job, cluster), sys.stdout)
    written = [path for path in (args.out, args.trace) if path]
    if written:
        print(f"\nwritten to {' and '.join(written)}")


def _print_json(data: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
