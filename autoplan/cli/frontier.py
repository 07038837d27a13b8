"""``autoplan frontier``: time against money over clusters and their sizes, with the plan of each point."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import fraction, positive
from autoplan.cli.goal import add_goal
from autoplan.cli.progress import LateProgress
from autoplan.cli.question import (
    add_experts,
    add_job,
    add_pins,
    forbidden,
    graphs_of,
    job_of,
    pins_of,
    routing_of,
)
from autoplan.errors import InputError, NoPlanError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.search.graphs import Graphs

__all__ = ["add_parser", "run"]

_MOST_SIZES = 64
_EPILOG = """\
examples:
  autoplan frontier llama3-8b --clusters a100-80-sxm,h100-sxm --nodes 1..16 --global-batch 512 --tokens 1e12
  autoplan frontier llama3-70b --clusters h100-sxm,h200-sxm --nodes 8..64 --global-batch 1024 --tokens 15e12 \\
      --max-days 60 --price h200-sxm=4.50
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``frontier`` to the command line."""
    parser = subparsers.add_parser(
        "frontier",
        help="time against money for a training run, over clusters and their sizes",
        description="Search the best plan on each cluster at each size; show days and dollars of a run of --tokens.",
        epilog=_EPILOG,
    )
    add_job(parser)
    where = parser.add_argument_group("where it could be trained")
    where.add_argument(
        "--clusters", metavar="NAME,...", required=True, help="hardware profiles or TOML files to compare"
    )
    where.add_argument(
        "--nodes",
        metavar="SIZES",
        required=True,
        type=_sizes,
        help="numbers of nodes: 1..64 doubles from 1 to 64, and 1,2,6 is these three",
    )
    where.add_argument(
        "--price",
        metavar="NAME=DOLLARS",
        action="append",
        default=[],
        type=_price,
        help="US dollars for an hour of one device, in place of the profile's; may be repeated",
    )
    goal = add_goal(parser, of_what="the point that is named best", default="cost", needs_tokens=True)
    goal.add_argument(
        "--gap", metavar="SHARE", type=fraction("--gap"), default=0.01, help="as for search (default: 0.01)"
    )
    add_experts(parser)
    add_pins(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the curve. Raises NoPlanError if no point is within the budget and the deadline."""
    from autoplan.graph.sources import load_source
    from autoplan.hardware import Cluster
    from autoplan.search.frontier import best_point, curve, points
    from autoplan.search.goal import Objective
    from autoplan.search.graphs import Graphs

    objective = Objective(args.objective)
    with LateProgress(args.quiet or args.json) as progress:
        clusters = [
            Cluster.of(name.strip(), nodes=nodes) for name in args.clusters.split(",") for nodes in args.nodes
        ]
        prices = _prices(args, clusters)
        source = load_source(args.model, args.seq)
        job, routing = job_of(args, source), routing_of(args)
        known: dict[str, Graphs] = {}

        def graphs_on(cluster: Cluster) -> Graphs:
            kind = cluster.device.kind
            if kind not in known:
                known[kind] = Graphs(graphs_of(source, job, cluster, routing, progress))
            return known[kind]

        options: dict[str, Any] = {"pin": pins_of(args), "forbid": forbidden(args), "gap": args.gap}
        found = list(
            points(
                graphs_on,
                job,
                clusters,
                args.tokens,
                prices=prices,
                objective=objective,
                max_cost=args.max_cost,
                max_days=args.max_days,
                progress=progress.update,
                **options,
            )
        )
    best = best_point(found, objective, args.max_cost, args.max_days)
    if args.json:
        import msgspec

        from autoplan.report.frontier_report import frontier_json

        print(
            msgspec.json.format(
                msgspec.json.encode(frontier_json(found, curve(found), best)), indent=2
            ).decode()
        )
    else:
        from autoplan.report import print_report
        from autoplan.report.frontier_report import frontier_report

        print_report(
            frontier_report(source.name, job, args.tokens, objective, found, curve(found), best), sys.stdout
        )
    if best is None:
        raise NoPlanError(
            "frontier",
            f"{len(found)} points",
            "one that fits, in time and in budget",
            "allow more --max-days or --max-cost, more --nodes, or other --clusters",
        )
    return 0


def _prices(args: argparse.Namespace, clusters: list[Cluster]) -> dict[str, float]:
    """By the profile's own name, whatever name or file the user gave."""
    named = [name.strip() for name in args.clusters.split(",")]
    own = {name: c.name for name, c in zip(named, clusters[:: len(args.nodes)], strict=True)}
    prices: dict[str, float] = {}
    for name, dollars in args.price:
        if name not in own and name not in own.values():
            raise InputError("--price", name, f"one of {', '.join(own)}", "name a profile of --clusters")
        prices[own.get(name, str(name))] = dollars
    return prices


def _sizes(text: str) -> list[int]:
    if match := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text):
        low, high = int(match[1]), int(match[2])
        sizes = [low]
        while low and sizes[-1] < high:
            sizes.append(min(2 * sizes[-1], high))
        if 0 < low <= high:
            return sizes
    elif re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        sizes = sorted(set(map(int, text.split(","))))
        if sizes[0] > 0 and len(sizes) <= _MOST_SIZES:
            return sizes
    raise InputError("--nodes", text, "numbers of nodes, as 4, 1..64 or 1,2,6", "give --nodes 1..16")


def _price(text: str) -> tuple[str, float]:
    name, equals, dollars = text.rpartition("=")
    if not equals or not name:
        raise InputError("--price", text, "NAME=DOLLARS", "give --price h100-sxm=2.50")
    return name, positive("--price")(dollars)
