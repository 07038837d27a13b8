"""``autoplan COMMAND …``: one door, one form of error, one meaning of each exit status.

    0    done                          3    no plan fits; the message says what would make one fit
    1    the ranks of a run disagree,  130  interrupted
         or a plan fails its check     141  whoever read the output has gone
    2    an input is wrong

Nothing heavy is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import autoplan
from autoplan.cli import calibrate, emit, estimate, explain, frontier, graph, profile, run, search, show
from autoplan.cli.arguments import Parser
from autoplan.errors import AutoplanError

__all__ = ["build_parser", "main"]

_INTERRUPTED = 130
_PIPE_CLOSED = 141

_EPILOG = """\
examples:
  autoplan search llama3-8b --cluster h100-sxm --nodes 2 --global-batch 256
  autoplan search llama3-8b --cluster h100-sxm --nodes 2 --global-batch 256 --tp 4 --out plan.json
  autoplan show plan.json
  autoplan COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Errors on purpose are one line; others are bugs."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            return _command(words)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can be handled
    except BrokenPipeError:
        _drop_stdout()
        return _PIPE_CLOSED


def _command(words: list[str]) -> int:
    try:
        args = build_parser().parse_args(words)
        return args.run(args)
    except AutoplanError as error:
        print(f"autoplan: error: {error}", file=sys.stderr)
        if "--json" in words:
            print(json.dumps(error.to_json()))
        return error.exit_status
    except KeyboardInterrupt:
        print("autoplan: interrupted", file=sys.stderr)
        return _INTERRUPTED


def build_parser() -> Parser:
    """The parser with every command; each command's module adds its own options."""
    parser = Parser(
        prog="autoplan",
        description="Plan, prove and run the fastest parallel training of a PyTorch model on a cluster.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"autoplan {autoplan.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for command in (search, explain, frontier, estimate, show, run, emit, graph, profile, calibrate):
        command.add_parser(commands)
    return parser


def _drop_stdout() -> None:
    """Point stdout at nothing, or Python would complain about the same pipe again when it exits."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
