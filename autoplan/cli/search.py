"""``autoplan search``: the fastest plan for a model on a cluster, with a bound that proves it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import fraction, positive, seconds, whole_number
from autoplan.cli.goal import add_goal
from autoplan.cli.progress import LateProgress
from autoplan.cli.question import (
    add_cluster,
    add_experts,
    add_job,
    add_pins,
    asked,
    forbidden,
    graphs_of,
    job_of,
    pins_of,
    routing_of,
)
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job, Plan
    from autoplan.search.objective import Run
    from autoplan.search.result import SearchResult

__all__ = ["add_parser", "run"]


_EPILOG = """\
examples:
  autoplan search llama3-8b --cluster h100-sxm --nodes 2 --global-batch 256
  autoplan search path/to/config.json --cluster h100-sxm --gpus 64 --seq 4096 --global-batch 512 --out plan.json
  autoplan search llama3-8b --cluster h100-sxm --nodes 8 --global-batch 512 --tokens 1e12 --objective energy --max-days 60
  autoplan search llama3-8b --cluster a100-80-sxm:4+h100-sxm:4 --global-batch 512
  autoplan search my_models.py:make --cluster cluster.toml --global-batch 64 --tp 2 --no-recompute --json

exit status: 0 a plan was found; 2 an input is wrong; 3 nothing fits (the message says what would), or
nothing was found within --time-limit
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``search`` to the command line."""
    parser = subparsers.add_parser(
        "search",
        help="find the fastest plan for a model on a cluster, with a bound that proves it",
        description="Find the fastest parallel training plan for MODEL on a cluster, with a bound that proves it.",
        epilog=_EPILOG,
    )
    add_job(parser)
    add_cluster(parser)
    add_experts(parser)
    add_pins(parser)
    goal = add_goal(parser, of_what="the plan", default="time", needs_tokens=False)
    goal.add_argument(
        "--price",
        metavar="DOLLARS",
        type=positive("--price"),
        help="US dollars for an hour of one GPU, in place of the profile's",
    )
    _add_search(parser)
    _add_output(parser)
    parser.set_defaults(run=run)


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
        help="stop then, with the best plan so far and its bound; the check of that plan comes after (default: none)",
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
    from autoplan.hardware import cluster_of

    for option in ("--out", "--trace"):
        _check_out(option, getattr(args, option.strip("-")))
    with LateProgress(args.quiet) as progress:
        progress.update("reading the model and the cluster")
        cluster = cluster_of(args.cluster, nodes=args.nodes, gpus=args.gpus)
        source = load_source(args.model, args.seq)
        job = job_of(args, source)
        graph_at = graphs_of(source, job, cluster, routing_of(args), progress)
        result = _search(args, graph_at, job, cluster, progress)
        ran = _run_of(args, result, job, cluster)
        if args.trace and result.plan is not None:
            progress.update("writing the trace")
            _write_trace(args.trace, graph_at(result.plan.micro_batch), result.plan, job, cluster)
    if result.plan is None:
        return _tell_conflict(args, result)
    if args.out:
        import msgspec

        from autoplan.plan import write_plan

        write_plan(msgspec.structs.replace(result.plan, asked=asked(args)), args.out)
    if args.json:
        _print_json({**result.to_json(), "run": ran and ran.to_json()})
    elif not args.quiet:
        _print_report(args, result, job, cluster, ran)
    return 0


def _check_out(option: str, out: str | None) -> None:
    """Before a long search, that its answer will have a place."""
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(
            option, out, "a file in a directory that exists", "make the directory, or choose another path"
        )


def _search(
    args: argparse.Namespace, graph_at: Any, job: Job, cluster: AnyCluster, progress: LateProgress
) -> SearchResult:
    from autoplan.search import search
    from autoplan.search.goal import Goal, Objective

    pins = pins_of(args)
    goal = Goal.of(
        Objective(args.objective),
        job,
        cluster,
        tokens=args.tokens,
        price=args.price,
        max_cost=args.max_cost,
        max_days=args.max_days,
    )
    try:
        return search(
            graph_at,
            job,
            cluster,
            pin=pins,
            forbid=forbidden(args),
            gap=args.gap,
            time_limit_s=args.time_limit,
            progress=progress.update,
            top=args.top,
            goal=goal,
        )
    except InputError as error:
        if error.field not in pins:
            raise
        option = f"--{error.field.replace('_', '-')}"  # as the user wrote it
        raise type(error)(option, error.value, error.expected, error.remedy) from None


def _run_of(args: argparse.Namespace, result: SearchResult, job: Job, cluster: AnyCluster) -> Run | None:
    """Figures of the run that ``--tokens`` describes."""
    if args.tokens is None or result.best is None:
        return None
    from autoplan.search.objective import run_of

    return run_of(result.best, args.tokens, job, cluster, args.price)


def _write_trace(path: str, graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster) -> None:
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
    late = result.status.value == "limit"
    line = f"no plan {'yet' if late else 'fits'}: {result.conflict.rstrip('.')}; {error.remedy}"
    print(f"autoplan: error: {' '.join(line.split())}", file=sys.stderr)
    return error.exit_status


def _print_report(
    args: argparse.Namespace, result: SearchResult, job: Job, cluster: AnyCluster, ran: Run | None
) -> None:
    from autoplan.report import print_report, search_report

    print_report(search_report(result, job, cluster, ran), sys.stdout)
    written = [path for path in (args.out, args.trace) if path]
    if written:
        print(f"\nwritten to {' and '.join(written)}")


def _print_json(data: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
