"""``autoplan estimate``: the price of a configuration written by hand, or of a table of runs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import one_of, whole_number
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.cost.transformer.configuration import Configuration
    from autoplan.hardware import AnyCluster

__all__ = ["add_parser", "run"]

_SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipe-v")
_PRECISIONS = ("bf16", "fp16", "fp32", "tf32", "fp8", "mxfp8", "nvfp4")
_PROGRAMS = ("megatron-core", "megatron-core-plain", "megatron", "megatron-deepspeed", "fsdp", "xla")

_EPILOG = """\
examples:
  autoplan estimate llama3-70b --cluster h100-sxm --nodes 16 --tp 8 --pp 4 --vpp 5 --global-batch 256
  autoplan estimate path/to/config.json --cluster a100-80-sxm --gpus 64 --tp 8 --zero 1 --recompute full \\
      --micro-batch 2 --global-batch 512 --seq 4096 --json
  autoplan estimate --table runs.csv --out priced.csv

Nothing is searched: whatever is asked is priced, also when it does not fit (the answer says so, and why).
Only what no program could run is refused, such as more tensor ranks than heads.

A table has one run a row, with the columns model, layers, hidden, ffn_hidden, gated_mlp, heads, kv_heads,
head_dim, vocab, seq_len, experts, top_k, gpu, gpus, tp, sp, pp, vpp, cp, ep, dp, zero_stage, precision,
recompute, flash_attention, micro_batch, global_batch, and if there are any params_b, framework, task, notes,
offload_layers and offload_optimizer; others are copied. Blanks are taken as the most usual choice, or where
that does not fit as the next that does, and named in pred_assumed. Added: pred_step_time_s, pred_tokens_per_s_per_gpu, pred_mem_gb,
pred_fits, pred_assumed, pred_error (why a row has no price).

exit status: 0 priced, fitting or not; 2 an input is wrong
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``estimate`` to the command line."""
    parser = subparsers.add_parser(
        "estimate",
        help="price a configuration written by hand, or a table of runs, without searching",
        description="Predict step time and memory of a configuration written by hand, however unwise.",
        epilog=_EPILOG,
    )
    _add_model(parser)
    _add_degrees(parser)
    _add_choices(parser)
    _add_table(parser)
    parser.set_defaults(run=run)


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("what to train, and where")
    model.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a built-in size (llama3-8b), or a Hugging Face config.json or its directory",
    )
    model.add_argument(
        "--cluster",
        metavar="NAME|FILE|PARTS",
        help="a hardware profile or a TOML file, or PROFILE:NODES+PROFILE:NODES (as for search); with --table it replaces what the rows name",
    )
    size = model.add_mutually_exclusive_group()
    size.add_argument("--nodes", metavar="N", type=whole_number("--nodes"), help="nodes of the cluster")
    size.add_argument(
        "--gpus", metavar="N", type=whole_number("--gpus"), help="GPUs of it, in place of --nodes"
    )
    model.add_argument(
        "--global-batch",
        metavar="N",
        type=whole_number("--global-batch"),
        help="samples of one optimizer step",
    )
    model.add_argument(
        "--micro-batch",
        metavar="N",
        type=whole_number("--micro-batch"),
        default=1,
        help="samples that a GPU runs at once (default: 1)",
    )
    model.add_argument(
        "--seq", metavar="N", type=whole_number("--seq"), help="tokens of a sample (default: the model's own)"
    )


def _add_degrees(parser: argparse.ArgumentParser) -> None:
    degrees = parser.add_argument_group("degrees", "1 where not given; --dp takes the GPUs that are left.")
    for name, meaning in (
        ("tp", "GPUs that share each op (tensor parallel)"),
        ("pp", "pipeline stages"),
        ("vpp", "chunks of layers that each stage holds (virtual stages)"),
        ("cp", "GPUs that share each sequence (context parallel)"),
        ("dp", "groups of GPUs that train on different samples (data parallel)"),
        ("ep", "GPUs over which the experts lie (expert parallel, inside tp x cp x dp)"),
        ("etp", "GPUs that share each expert (default: 1)"),
    ):
        degrees.add_argument(f"--{name}", metavar="N", type=whole_number(f"--{name}"), help=meaning)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    choices = parser.add_argument_group("choices")
    choices.add_argument(
        "--schedule",
        metavar="NAME",
        type=one_of("--schedule", *_SCHEDULES),
        help=f"{', '.join(_SCHEDULES)} (default: 1f1b, interleaved with --vpp)",
    )
    choices.add_argument(
        "--zero",
        metavar="N",
        default="1",
        type=one_of("--zero", "0", "1", "2", "3"),
        help="what dp shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters (default: 1)",
    )
    choices.add_argument(
        "--recompute",
        metavar="WHAT",
        default="none",
        type=one_of("--recompute", "none", "selective", "full"),
        help="what backward runs again: none, selective (attention's core) or full (default: none)",
    )
    choices.add_argument(
        "--precision",
        metavar="NAME",
        default="bf16",
        type=one_of("--precision", *_PRECISIONS),
        help=f"{', '.join(_PRECISIONS)} (default: bf16)",
    )
    choices.add_argument(
        "--offload-layers",
        metavar="N",
        type=whole_number("--offload-layers"),
        default=0,
        help="layers whose activations wait for backward in the host's memory (default: 0)",
    )
    choices.add_argument(
        "--offload-optimizer",
        action="store_true",
        help="the optimizer's state and its step are the host's (ZeRO-Offload)",
    )
    choices.add_argument("--no-flash", action="store_true", help="attention's scores go through memory")
    choices.add_argument(
        "--no-sequence-parallel",
        action="store_true",
        help="norms and residuals are whole on every tp rank (default: cut over them)",
    )
    choices.add_argument(
        "--program",
        metavar="NAME",
        default="megatron-core",
        type=one_of("--program", *_PROGRAMS),
        help=f"what trains, with its overlaps and fusions: {', '.join(_PROGRAMS)} (default: megatron-core)",
    )
    choices.add_argument(
        "--trace",
        metavar="FILE",
        help="simulate the step event by event, and write it for Perfetto or chrome://tracing",
    )
    choices.add_argument("--json", action="store_true", help="print the whole result as JSON")


def _add_table(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group("many runs at once")
    table.add_argument("--table", metavar="CSV", help="price every row of this table (- is standard input)")
    table.add_argument(
        "--out", metavar="CSV", help="where to write it with the predictions (- is standard output)"
    )


def run(args: argparse.Namespace) -> int:
    """Price one configuration and print it, or a table and write it."""
    if args.table is not None:
        return _run_table(args)
    if args.out is not None:
        raise InputError("--out", args.out, "a table to price", "give --table, or leave --out out")
    for option, value in (
        ("MODEL", args.model),
        ("--cluster", args.cluster),
        ("--global-batch", args.global_batch),
    ):
        if value is None:
            raise InputError(option, None, "a value", f"give {option}, or --table with a table of runs")
    return _run_one(args)


def _run_one(args: argparse.Namespace) -> int:
    from autoplan.cost.transformer.config_file import model_shape
    from autoplan.cost.transformer.feasible import check_configuration
    from autoplan.cost.transformer.formats import formats_of
    from autoplan.cost.transformer.one import estimate_one
    from autoplan.cost.transformer.software import SOFTWARE
    from autoplan.hardware import cluster_of

    name, shape, usual_seq = model_shape(args.model)
    cluster = cluster_of(args.cluster, nodes=args.nodes, gpus=args.gpus)
    configuration = _configuration(args, usual_seq, cluster, int(shape.layers))
    schedule = args.schedule or ("interleaved" if configuration.vpp > 1 else "1f1b")
    check_configuration(shape, configuration, cluster, schedule)
    estimate = estimate_one(
        shape, configuration, cluster, formats_of(args.precision), SOFTWARE[args.program], schedule
    )
    plan = _plan(args, configuration, schedule, [stage.layers for stage in estimate.stages])
    if args.trace is not None:
        run_of = (shape, configuration, formats_of(args.precision), SOFTWARE[args.program], cluster, schedule)
        _write_trace(args.trace, name, run_of)
    if args.json:
        print(json.dumps({"status": "priced", "model": name, "plan": plan, "estimate": estimate.to_json()}))
        return 0
    from autoplan.report.console import print_report
    from autoplan.report.estimate_report import estimate_report

    print_report(estimate_report(name, plan, estimate, cluster), sys.stdout)
    return 0


def _write_trace(path: str, name: str, run_of: tuple[Any, ...]) -> None:
    from pathlib import Path

    from autoplan.cost.pipeline import step_trace
    from autoplan.cost.transformer.simulated import simulated_step

    trace = step_trace(simulated_step(*run_of), about={"model": name})
    try:
        Path(path).write_text(json.dumps(trace), encoding="utf-8")
    except OSError as error:
        raise InputError("--trace", path, f"a file that can be written ({error})", "choose another") from None


def _configuration(
    args: argparse.Namespace, usual_seq: int, cluster: AnyCluster, layers: int
) -> Configuration:
    from autoplan.cost.transformer.configuration import Configuration, Recompute

    tp, pp, cp = args.tp or 1, args.pp or 1, args.cp or 1
    dp = args.dp
    if dp is None:
        dp, left = divmod(cluster.world_size, tp * pp * cp)
        if left or dp == 0:
            raise InputError(
                "--tp",
                tp,
                f"tp x pp x cp = {tp * pp * cp} that divides the {cluster.world_size} devices",
                "change a degree or the size of the cluster",
            )
    micro_batches, left = divmod(args.global_batch, args.micro_batch * dp)
    if left or micro_batches == 0:
        raise InputError(
            "--global-batch",
            args.global_batch,
            f"a multiple of micro-batch x dp = {args.micro_batch * dp}",
            "change --global-batch, --micro-batch or --dp",
        )
    return Configuration(
        seq=args.seq or usual_seq,
        micro_batch=args.micro_batch,
        micro_batches=micro_batches,
        tp=tp,
        sp=tp > 1 and not args.no_sequence_parallel,
        pp=pp,
        vpp=args.vpp or (2 if args.schedule in ("zbv", "dualpipe-v") else 1),
        cp=cp,
        ep=args.ep or 1,
        etp=args.etp or 1,
        dp=dp,
        zero=int(args.zero),
        recompute=int(Recompute[args.recompute.upper()]),
        flash=not args.no_flash,
        parked=min(args.offload_layers / layers, 1.0),
        host_optimizer=args.offload_optimizer,
    )


def _plan(args: argparse.Namespace, c: Configuration, schedule: str, layers: list[float]) -> dict[str, Any]:
    return {
        "pp": c.pp,
        "dp": c.dp if args.zero == "0" else 1,
        "fsdp": 1 if args.zero == "0" else c.dp,
        "cp": c.cp,
        "tp": c.tp,
        "ep": c.ep,
        "etp": c.etp,
        "vpp": c.vpp,
        "schedule": schedule,
        "micro_batch": c.micro_batch,
        "num_micro_batches": c.micro_batches,
        "global_batch": args.global_batch,
        "seq": c.seq,
        "zero": c.zero,
        "recompute": args.recompute,
        "precision": args.precision,
        "sequence_parallel": c.sp,
        "flash_attention": c.flash,
        "offload_layers": args.offload_layers,
        "offload_optimizer": args.offload_optimizer,
        "program": args.program,
        "stages": layers,
    }


def _run_table(args: argparse.Namespace) -> int:
    from autoplan.cost.transformer.price_rows import price_rows
    from autoplan.cost.transformer.row_cluster import loaded_cluster
    from autoplan.cost.transformer.table_file import read_table, write_table

    if args.model is not None:
        raise InputError("MODEL", args.model, "no model beside --table", "leave MODEL out: rows name theirs")
    if args.out is None:
        raise InputError("--out", None, "a file for the priced table", "give --out priced.csv")
    if args.cluster is not None:
        loaded_cluster(args.cluster)
    header, rows = read_table(args.table)
    priced = price_rows(rows, args.cluster)
    write_table(args.out, header, rows, priced)
    done = sum(not row.error for row in priced)
    if args.json and args.out != "-":
        print(json.dumps({"status": "priced", "rows": len(rows), "priced": done, "out": args.out}))
    elif args.out != "-":
        print(f"{done} of {len(rows)} rows priced, written to {args.out}")
    return 0
