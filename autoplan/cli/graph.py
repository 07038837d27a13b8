"""``autoplan graph``: what tracing sees of a model, before any plan is made of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoplan.cli.arguments import one_of, whole_number
from autoplan.cli.progress import LateProgress
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.graph import ModelGraph

__all__ = ["add_parser", "run"]

_EPILOG = """\
axes are written as einsum does: `1 d1 i, o i -> 1 d1 o` is a linear layer. An axis can be cut over the ranks of a
mesh axis; `!` marks one that cannot, `(h e)` is a dim that is the product of two axes, `1` one that no axis runs over.

examples:
  autoplan graph llama3-8b
  autoplan graph llama3-8b --summary
  autoplan graph path/to/config.json --seq 4096 --kind LlamaDecoderLayer_0
  autoplan graph my_models.py:make --dot | dot -Tsvg > model.svg
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``graph`` to the command line."""
    parser = subparsers.add_parser(
        "graph",
        help="print a model as it is traced: blocks, ops, iteration axes, FLOP, bytes",
        description="Trace MODEL, which takes neither weights nor a GPU, and print its graph with each repeated "
        "block once: ops with their iteration axes, forward FLOP, bytes read and written, bytes saved for backward.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a built-in size (llama3-8b), a Hugging Face config.json or its directory, "
        "or a factory (package.module:factory, path/to/file.py:factory)",
    )
    parser.add_argument(
        "--seq",
        metavar="N",
        type=whole_number("--seq"),
        help="tokens in a sample (default: the model's own length)",
    )
    parser.add_argument(
        "--micro-batch",
        metavar="N",
        type=whole_number("--micro-batch"),
        default=1,
        help="samples to trace for (default: 1)",
    )
    parser.add_argument(
        "--precision",
        metavar="DTYPE",
        default="bf16",
        type=one_of("--precision", "bf16", "fp32", "fp64"),
        help="bf16, fp32 or fp64 (default: bf16)",
    )
    what = parser.add_argument_group("what to print")
    what.add_argument("--summary", action="store_true", help="leave the ops out")
    what.add_argument(
        "--kind",
        metavar="NAME",
        action="append",
        help="only this block, as the summary names it; may be repeated",
    )
    form = what.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON instead")
    form.add_argument("--dot", action="store_true", help="print a Graphviz drawing instead")
    what.add_argument("--out", metavar="FILE", help="write it there instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trace and print."""
    if (args.json or args.dot) and (args.summary or args.kind):
        field, form = ("--summary", args.summary) if args.summary else ("--kind", args.kind)
        raise InputError(
            field, form, "only with the text form", "leave it out; --json and --dot hold everything"
        )
    if args.out and not Path(args.out).absolute().parent.is_dir():
        raise InputError("--out", args.out, "a file in a directory that exists", "make the directory first")
    graph = _trace(args)
    text = _text(args, graph)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _trace(args: argparse.Namespace) -> ModelGraph:
    from autoplan.graph.sources import load_source

    with LateProgress(False) as progress:
        progress.update(f"building {args.model}")
        source = load_source(args.model, args.seq)
        import torch

        from autoplan.graph.trace import trace
        from autoplan.plan import Precision

        with torch.device("meta"):
            model = source.build()
        progress.update(f"tracing {source.name}")
        batch = source.example_batch(args.micro_batch)
        return trace(model, batch, source.loss, Precision(args.precision), source.name)


def _text(args: argparse.Namespace, graph: ModelGraph) -> str:
    from autoplan.report import graph_dot, graph_json, graph_text

    if args.json:
        return json.dumps(graph_json(graph), indent=2) + "\n"
    if args.dot:
        return graph_dot(graph)
    for kind in args.kind or ():
        if kind not in graph.kinds:
            raise InputError(
                "--kind", kind, f"one of {', '.join(graph.kinds)}", "see --summary for the names"
            )
    return graph_text(graph, args.kind, not args.summary)
