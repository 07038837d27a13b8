"""``autoplan explain``: what each decision of a plan is worth, and why it is not another plan."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import fraction, one_of
from autoplan.cli.progress import LateProgress
from autoplan.cli.question import add_experts, add_rules, add_size, forbidden, graphs_of, job_of, routing_of
from autoplan.errors import InputError, PlanError

if TYPE_CHECKING:
    from autoplan.plan import Plan
    from autoplan.search.graphs import Graphs

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  autoplan search llama3-8b --cluster h100-sxm --nodes 2 --global-batch 256 --out plan.json
  autoplan explain plan.json
  autoplan explain plan.json --why-not tp=4,pp=2
  autoplan explain plan.json --why-not 'DecoderLayer_0.linear=cut o' --json

The question is the one that the plan was searched for; options replace what the file says of it.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``explain`` to the command line."""
    parser = subparsers.add_parser(
        "explain",
        help="say what each decision of a plan is worth, and why it is not another plan",
        description="Check and price a plan, and compare it with the best plans that decide otherwise.",
        epilog=_EPILOG,
    )
    parser.add_argument("plan", metavar="PLAN", help="a file written by `autoplan search --out`")
    parser.add_argument(
        "--why-not",
        metavar="KEY=VALUE,...",
        help="compare with the best plan under these decisions (those of --pin) instead",
    )
    held = parser.add_argument_group("decisions to hold or forbid in what the plan is compared with")
    add_rules(held)
    question = parser.add_argument_group("the question, where the plan does not say it")
    question.add_argument("--model", metavar="MODEL", help="the model, as for `autoplan search`")
    question.add_argument("--seq", metavar="N", type=_whole("--seq"), help="tokens in a sample")
    question.add_argument(
        "--optimizer", metavar="NAME", type=one_of("--optimizer", "adamw", "sgd"), help="adamw or sgd"
    )
    question.add_argument("--cluster", metavar="NAME|FILE", help="the hardware profile")
    add_size(question)
    add_experts(parser)
    parser.add_argument(
        "--gap",
        metavar="SHARE",
        type=fraction("--gap"),
        default=0.01,
        help="how near to the best the plans to compare with must be (default: 0.01)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def _whole(option: str) -> Any:
    from autoplan.cli.arguments import whole_number

    return whole_number(option)


def run(args: argparse.Namespace) -> int:
    """Print what the plan is worth; a comparison with nothing that fits is an answer too."""
    from autoplan.graph.sources import load_source
    from autoplan.hardware import cluster_of
    from autoplan.plan import read_plan
    from autoplan.search.graphs import Graphs

    plan = read_plan(args.plan)
    _complete(args, plan)
    pin = _pins(args)
    with LateProgress(args.quiet or args.json) as progress:
        progress.update("reading the model and the cluster")
        cluster = cluster_of(args.cluster, nodes=args.nodes, gpus=args.gpus)
        source = load_source(args.model, args.seq)
        job = job_of(args, source)
        graphs = Graphs(graphs_of(source, job, cluster, routing_of(args), progress))
        mine = _priced(plan, graphs, job, cluster)
        if args.why_not is not None:
            shown = _why_not(args, mine, graphs, job, cluster, pin, progress)
        else:
            shown = _decisions(args, mine, graphs, job, cluster, pin, progress)
    data, report = shown
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
        return 0
    from autoplan.report import print_report

    print_report(report, sys.stdout)
    return 0


def _complete(args: argparse.Namespace, plan: Plan) -> None:
    """Fill in the question from the plan."""
    said = {**plan.asked}
    if args.nodes is not None or args.gpus is not None:
        said.pop("nodes", None)
        said.pop("gpus", None)
    for name in ("model", "seq", "optimizer", "cluster", "nodes", "gpus"):
        if getattr(args, name) is None:
            setattr(args, name, said.get(name))
    for name, usual in (("moe_imbalance", 1.0), ("moe_histogram", None), ("moe_capacity", None)):
        if getattr(args, name) == usual:
            setattr(args, name, said.get(name, usual))
    args.model = args.model or plan.model
    args.optimizer = args.optimizer or "adamw"
    args.global_batch, args.precision = plan.global_batch, plan.precision.value
    if args.cluster is None:
        raise InputError(
            "--cluster",
            None,
            "the hardware profile that the plan is for (the file does not say)",
            "give --cluster, as for `autoplan search`",
        )
    if args.nodes is None and args.gpus is None:
        args.gpus = plan.world_size


def _pins(args: argparse.Namespace) -> dict[str, int | str]:
    pins = dict(args.pin)
    for text in (args.why_not or "").split(","):
        name, equals, value = text.partition("=")
        if args.why_not is not None and not (equals and name.strip() and value.strip()):
            raise InputError("--why-not", args.why_not, "KEY=VALUE,...", "give --why-not tp=4,pp=2")
        if equals:
            value = value.strip()
            pins[name.strip()] = int(value) if value.isascii() and value.isdecimal() else value
    return pins


def _priced(plan: Plan, graphs: Graphs, job: Any, cluster: Any) -> Any:
    from autoplan.cost import price
    from autoplan.search.certificate import check_candidate
    from autoplan.search.result import Candidate

    graph = graphs.trace(plan.micro_batch)
    if plan.fingerprint != graph.fingerprint:
        raise PlanError(
            "fingerprint",
            plan.fingerprint,
            f"{graph.fingerprint}, that of {graph.name} as it was asked for here",
            "give the --model, --seq and --optimizer that the plan was searched for",
        )
    mine = Candidate(plan, price(graph, plan, job, cluster))
    check_candidate(graph, mine, job, cluster)
    return mine


def _why_not(
    args: argparse.Namespace, mine: Any, graphs: Graphs, job: Any, cluster: Any, pin: Any, progress: Any
) -> tuple[dict[str, Any], Any]:
    from autoplan.report.explain_report import why_not_json, why_not_report
    from autoplan.search.outer import search

    try:
        found = search(
            graphs,
            job,
            cluster,
            pin=pin,
            forbid=forbidden(args),
            gap=args.gap,
            top=1,
            progress=progress.update,
        )
    except InputError as error:
        if error.field in ("--global-batch",):
            raise
        raise type(error)(f"--why-not: {error.field}", error.value, error.expected, error.remedy) from None
    text = ", ".join(f"{name}={value}" for name, value in pin.items())
    return why_not_json(mine, text, found), why_not_report(mine, text, found, cluster)


def _decisions(
    args: argparse.Namespace, mine: Any, graphs: Graphs, job: Any, cluster: Any, pin: Any, progress: Any
) -> tuple[dict[str, Any], Any]:
    from autoplan.report.explain_report import explain_json, explain_report
    from autoplan.search.counterfactual import otherwise
    from autoplan.search.outer import search

    progress.update("searching the best plan")
    best = search(graphs, job, cluster, pin=pin, forbid=forbidden(args), gap=args.gap, top=1)
    others = list(
        otherwise(
            graphs,
            job,
            cluster,
            mine.plan,
            pin=pin,
            forbid=forbidden(args),
            gap=args.gap,
            progress=progress.update,
        )
    )
    return explain_json(mine, best, others), explain_report(mine, best, others, cluster)
