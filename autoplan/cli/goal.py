"""What a run is to have least of, and its limits, as options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from autoplan.cli.arguments import one_of, positive

__all__ = ["add_goal"]


def add_goal(parser: argparse.ArgumentParser, *, of_what: str, default: str, needs_tokens: bool) -> Any:
    """Add ``--tokens``, ``--objective``, ``--max-cost`` and ``--max-days``; returns their group.

    ``of_what``: what has least of the objective, in the words of the command.
    """
    goal = parser.add_argument_group("what counts")
    goal.add_argument(
        "--tokens",
        metavar="N",
        required=needs_tokens,
        type=positive("--tokens"),
        help="tokens to train on in all, such as 15e12",
    )
    goal.add_argument(
        "--objective",
        metavar="WHAT",
        default=default,
        type=one_of("--objective", "time", "cost", "energy"),
        help=f"what {of_what} has least of: time, cost or energy (default: {default})",
    )
    goal.add_argument(
        "--max-cost", metavar="DOLLARS", type=positive("--max-cost"), help="the most that the run may cost"
    )
    goal.add_argument(
        "--max-days", metavar="DAYS", type=positive("--max-days"), help="the most days that it may take"
    )
    return goal
