"""``autoplan run``: a training script under torchrun, with as many ranks as its plan has.

The plan reaches the script through the environment: ``autoplan.parallelize(...)`` without a ``plan`` takes
the one that ``AUTOPLAN_PLAN`` names.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autoplan.cli.arguments import whole_number
from autoplan.errors import InputError, PlanError
from autoplan.plan import Plan, read_plan

__all__ = ["PLAN_VARIABLE", "add_parser", "launch_command", "run"]

PLAN_VARIABLE = "AUTOPLAN_PLAN"
"""Environment variable with the path of the plan that a script's ``parallelize`` takes by default."""

_EPILOG = """\
examples:
  autoplan run plan.json train.py --lr 3e-4
  autoplan run --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500 plan.json train.py    (and 1 on the other)
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``run`` to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="launch a training script under a plan",
        description="Launch SCRIPT under torchrun with the ranks of PLAN; autoplan.parallelize(...) in it takes PLAN.",
        epilog=_EPILOG,
    )
    parser.add_argument("plan", metavar="PLAN", help="a file written by `autoplan search --out`")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file that calls autoplan.parallelize(...)")
    parser.add_argument(
        "script_args", metavar="ARGS", nargs=argparse.REMAINDER, help="passed to SCRIPT as they are"
    )
    parser.add_argument(
        "--nnodes", type=whole_number("--nnodes"), default=1, help="machines that take part (default: 1)"
    )
    parser.add_argument(
        "--nproc-per-node",
        type=whole_number("--nproc-per-node"),
        help="ranks on each machine (default: the plan's ranks, shared out evenly)",
    )
    parser.add_argument(
        "--node-rank",
        type=whole_number("--node-rank", 0),
        help="which of the machines this is, from 0; leave it out to let them agree among themselves",
    )
    parser.add_argument(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="where the machines meet: HOST is one of them, the same for all",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become torchrun; its exit status is the command's.

    Raises:
        PlanError: the plan cannot be read, or has another number of ranks than was asked for.
        InputError: the script is missing, or the machines cannot find each other.
    """
    plan_file = Path(args.plan).resolve()
    command = launch_command(args, read_plan(args.plan))
    environment = {**os.environ, PLAN_VARIABLE: str(plan_file)}
    # torchrun's own default is one thread a rank, and a warning; this shares the cores out.
    ranks_here = int(command[command.index("--nproc-per-node") + 1])
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks_here)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def launch_command(args: argparse.Namespace, plan: Plan) -> list[str]:
    """The torchrun command for this machine. Raises as ``run`` does, but for the plan's own file."""
    if not Path(args.script).is_file():
        raise InputError("SCRIPT", args.script, "a Python file that exists", "correct the path of the script")
    ranks_here = _ranks_per_node(plan, args.nnodes, args.nproc_per_node)
    return [
        sys.executable,
        *("-m", "torch.distributed.run"),
        *("--nnodes", str(args.nnodes)),
        *("--nproc-per-node", str(ranks_here)),
        *_rendezvous(args.nnodes, args.node_rank, args.rdzv_endpoint, plan.hash()),
        "--",  # or torchrun would take the script's options for its own
        args.script,
        *args.script_args,
    ]


def _ranks_per_node(plan: Plan, nodes: int, asked: int | None) -> int:
    world = plan.world_size
    if asked is None:
        if world % nodes:
            raise PlanError(
                "--nnodes",
                nodes,
                f"a divisor of the plan's {world} ranks",
                f"give --nnodes {_divisor(world, nodes)}",
            )
        return world // nodes
    if asked * nodes != world:
        raise PlanError(
            "--nproc-per-node",
            asked,
            f"{world} ranks in all, as the plan has, on {nodes} node{'s' * (nodes > 1)}",
            "leave --nproc-per-node out, or search a plan for this many ranks",
        )
    return asked


def _divisor(world: int, nodes: int) -> int:
    """The largest divisor of ``world`` that is no more than ``nodes``."""
    return max(n for n in range(1, min(world, nodes) + 1) if world % n == 0)


def _rendezvous(nodes: int, node_rank: int | None, endpoint: str | None, name: str) -> list[str]:
    """How the machines find each other.

    With a node rank they number themselves as told, which keeps a plan's neighbours on one machine;
    without, torchrun's ``c10d`` rendezvous numbers them in any order.
    """
    if node_rank is not None and node_rank >= nodes:
        raise InputError("--node-rank", node_rank, f"less than --nnodes, {nodes}", f"give 0 to {nodes - 1}")
    if endpoint is None:
        if nodes > 1:
            raise InputError(
                "--rdzv-endpoint",
                None,
                f"host:port where the {nodes} nodes meet",
                "give the same --rdzv-endpoint HOST:PORT on every node",
            )
        return ["--standalone"]
    host, _, port = endpoint.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError("--rdzv-endpoint", endpoint, "host:port", "give it as node0:29500")
    if node_rank is None:
        return ["--rdzv-backend", "c10d", "--rdzv-id", name, "--rdzv-endpoint", endpoint]
    return ["--rdzv-backend", "static", "--node-rank", str(node_rank), "--rdzv-endpoint", endpoint]
