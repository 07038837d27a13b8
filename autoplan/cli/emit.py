"""``autoplan emit``: a plan as a Python script that trains under torchrun without autoplan."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autoplan.cli.arguments import whole_number
from autoplan.errors import InputError, PlanError

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  autoplan emit plan.json --model my_model.py:make --out train_alone.py
  torchrun --nproc-per-node 8 train_alone.py --steps 100
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``emit`` to the command line."""
    parser = subparsers.add_parser(
        "emit",
        help="write a plan as a PyTorch script that needs no autoplan",
        description="Write a plan as a PyTorch script that runs under torchrun, without autoplan.",
        epilog=_EPILOG,
    )
    parser.add_argument("plan", metavar="PLAN", help="a file written by `autoplan search --out`")
    parser.add_argument(
        "--model",
        required=True,
        help="what was planned: a factory (package.module:factory, path/to/file.py:factory) or a config.json",
    )
    parser.add_argument("--seq", type=whole_number("--seq"), help="tokens per sample, as in the search")
    parser.add_argument("--out", required=True, metavar="FILE", help="the script to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the script.

    Raises:
        PlanError: the plan is for another model, or holds what a script cannot.
        InputError: the file cannot be written.
    """
    from autoplan.plan import read_plan, validate_plan

    plan = read_plan(args.plan)
    validate_plan(plan)
    out = Path(args.out)
    if not out.absolute().parent.is_dir():
        raise InputError("--out", args.out, "a file in a directory that exists", "make the directory first")
    build, classes = _build_model(args.model, out.absolute().parent)

    import torch

    from autoplan.emit import emit_script
    from autoplan.graph.sources import load_source
    from autoplan.graph.trace import trace

    source = load_source(args.model, args.seq)
    with torch.device("meta"):
        model = source.build()
    batch = source.example_batch(plan.micro_batch)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    graph = trace(model, batch, source.loss, plan.precision, source.name, device=kind)
    if plan.fingerprint and plan.fingerprint != graph.fingerprint:
        raise PlanError(
            "fingerprint",
            plan.fingerprint,
            f"{graph.fingerprint}, that of {args.model}",
            "name the model, and --seq, that the plan was searched for",
        )
    build += "\n\n\n" + _example(batch)
    script = emit_script(graph, plan, build, f"Train {source.name}.", classes)
    out.write_text(script, encoding="utf-8")
    print(f"written to {args.out}: torchrun --nproc-per-node {plan.world_size} {args.out}")
    sys.stdout.flush()
    return 0


def _build_model(spec: str, directory: Path) -> tuple[str, list[type]]:
    """Source of ``build_model``, which makes the model with weights, and an example batch if the model brings one; and
    the classes of this package that it needs."""
    from autoplan.graph.sources.builtin import builtin_config, is_builtin

    if is_builtin(spec):
        config = builtin_config(spec)
        model = _decoder_class(config.family)
        return _BUILTIN.format(model=model.__name__, config=config), [model, type(config)]
    if Path(spec).exists() and Path(spec).suffix != ".py":
        file = Path(spec) / "config.json" if Path(spec).is_dir() else Path(spec)
        return _HUGGING_FACE.format(path=os.path.relpath(file.resolve(), directory)), []
    location, _, name = spec.rpartition(":")
    if location.endswith(".py"):
        path = os.path.relpath(Path(location).resolve(), directory)
        return _FILE.format(path=path, name=name, stem=Path(location).stem) + _PARTS, []
    return _MODULE.format(module=location, name=name) + _PARTS, []


def _decoder_class(family: str) -> type:
    from autoplan.graph.sources.decoder import RotaryDecoder
    from autoplan.graph.sources.gpt import GPTDecoder

    return GPTDecoder if family == "gpt" else RotaryDecoder


_BUILTIN = '''
def build_model():
    """(model with weights, example of the global batch)."""
    model = {model}({config!r})
    return model, example_batch(model)
'''

_HUGGING_FACE = '''
def build_model():
    """(model with weights, example of the global batch)."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(Path(__file__).parent / {path!r})
    config.dtype = torch.get_default_dtype()
    model_class = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
    model = model_class._from_config(config, attn_implementation="sdpa")
    return model, example_batch(model)
'''

_FILE = '''
def build_model():
    """(model with weights, example of the global batch)."""
    import importlib.util
    import sys

    file = Path(__file__).parent / {path!r}
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location({stem!r}, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault({stem!r}, module)
    spec.loader.exec_module(module)
    made = module.{name}()
'''

_MODULE = '''
def build_model():
    """(model with weights, example of the global batch)."""
    import importlib
    import sys

    sys.path.insert(0, os.getcwd())
    made = importlib.import_module({module!r}).{name}()
'''

_PARTS = """\
    model = made[0] if isinstance(made, tuple) else made
    return model, example_batch(model)
"""


def _example(batch: object) -> str:
    """Source of ``example_batch``: random tensors of the batch's shapes."""
    from autoplan.graph.trace import flatten_batch

    names, tensors, _ = flatten_batch(batch)
    shapes = {
        name: (tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    }
    rows = "".join(f"        {name!r}: {shape!r},\n" for name, shape in shapes.items())
    return (
        "def example_batch(model: nn.Module) -> dict[str, Tensor]:\n"
        '    """Random inputs of the right shapes: replace them by your data."""\n'
        f"    shapes = {{\n{rows}    }}\n"
        "    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    found = {}\n"
        "    for name, (shape, dtype) in shapes.items():\n"
        "        kind = getattr(torch, dtype)\n"
        "        if kind.is_floating_point:\n"
        "            found[name] = torch.randn(GLOBAL_BATCH, *shape, generator=generator, dtype=kind)\n"
        "        else:\n"
        "            high = min(sizes, default=2)\n"
        "            found[name] = torch.randint(0, high, (GLOBAL_BATCH, *shape), generator=generator, dtype=kind)\n"
        "    return found"
    )
