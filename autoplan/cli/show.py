"""``autoplan show``: what a plan file decides, in words."""

from __future__ import annotations

import argparse
import json

from autoplan.plan import plan_json, plan_schema, read_plan

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``show`` to the command line."""
    parser = subparsers.add_parser(
        "show",
        help="check a plan file and print what it decides",
        description="Check a plan file and print what it decides.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("plan", nargs="?", metavar="PLAN", help="a file written by `autoplan search --out`")
    what.add_argument("--schema", action="store_true", help="print the JSON Schema of plan files instead")
    parser.add_argument(
        "--json", action="store_true", help="print the checked plan as JSON, in its one stable form"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan or the schema; PlanError if the file is no plan."""
    if args.schema:
        print(json.dumps(plan_schema(), indent=2))
        return 0
    plan = read_plan(args.plan)
    if args.json:
        print(plan_json(plan), end="")
        return 0
    from autoplan.report import plan_text

    print(plan_text(plan))
    return 0
