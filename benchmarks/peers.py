"""Our search side by side with every planner that can be installed from a registry and plans on a CPU, in one run.

    python benchmarks/peers.py --calculon CHECKOUT --calculon-python VENV/bin/python --galvatron VENV/bin/python
        [--questions MODEL:PROFILE:GPUS:BATCH ...]

Environments, each planner in its own:

- Calculon (its exhaustive search, ``llm-optimal-execution``): a checkout of github.com/calculon-ai/calculon, and a virtual
  environment with ``pip install numpy pandas psutil``. The package of that name in the index is another program.
- Galvatron: a virtual environment with ``pip install --no-deps hetu-galvatron`` (compiles its dynamic programming in C++),
  then ``pip install torch numpy scipy tqdm``. Its search engine alone is imported, since its runtime wants CUDA extensions.

The same for all: model, batch, precision (bf16 with masters in fp32), the hardware profile (written in the words of each:
``calculon_model``, ``galvatron_inputs``), the memory of a device, one fresh process on this machine for each question, and
the models that price the answers: ours for every plan that our programs can run, and Calculon for every one that it can
express. Measured: seconds from the start of the process to its end, its CPU seconds (a planner may use several processes or
threads), the peak of its memory, and the seconds that it says planning alone took.

Not the same: each decides what it can. Calculon's search is over tensor, pipeline and data parallelism, interleaving,
recomputation and the sharding of the optimizer's state, with equal blocks and no embedding or loss; it is asked without
overlapped tensor parallelism (its own ``--no-tp-overlap``), which no program of ours does. Galvatron chooses for each layer
its tp, ZeRO-2 or 3 and recomputation, under 1F1B, in powers of two, and keeps a fifth of the memory free; once more it is
asked for all layers alike (``uniform``), as plans that mix tp or ZeRO have no program here. What a planner leaves open is
completed as well as our search can (``peer_question``), and no limit of memory is put to the answer: ``fits`` says whether
it fits by the count of the model that prices it. Ours is asked once for anything, and once for plans that Calculon can
express (``same space``).

Writes results/peers.json and a table, results/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from calculon_model import FORBID, Calculon, NotSaid, application_of, pins_of, system_of
from galvatron_inputs import decided_by, galvatron_question
from peer_question import Decided, Question, from_calculon
from search_quality import short

from autoplan.plan import Plan

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers.json"
QUESTIONS = tuple(
    f"{model}:{profile}:{gpus}:{batch}"
    for model in ("gpt3-6.7b", "gpt3-13b", "llama2-7b", "llama2-13b")
    for profile, gpus, batch in (
        ("a100-80-sxm", 8, 64), ("a100-80-sxm", 16, 128), ("a100-80-sxm", 64, 256), ("h100-sxm", 16, 128),
    )
)  # fmt: skip
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--calculon", type=Path, help="a checkout of Calculon; without it no price by Calculon"
    )
    parser.add_argument(
        "--calculon-python", default=sys.executable, help="the Python that runs it (default: this one)"
    )
    parser.add_argument("--galvatron", help="the Python that has Galvatron")
    parser.add_argument("--questions", nargs="+", default=QUESTIONS, metavar="MODEL:PROFILE:GPUS:BATCH")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one answer (default: 600)")
    args = parser.parse_args()
    from surroundings import surroundings, write_results

    judge = Calculon(args.calculon, args.calculon_python) if args.calculon else None
    known = json.loads(RESULTS.read_text())["questions"] if RESULTS.exists() else {}
    result = surroundings() | {"questions": known}
    for text in args.questions:
        model, profile, gpus, batch = text.split(":")
        question = Question(model, profile, int(gpus), int(batch))
        answers = dict(asked(question, args))
        result["questions"][text] = {
            name: judged(question, answer, judge) for name, answer in answers.items()
        }
        for name, row in result["questions"][text].items():
            print(text, name, row["plan"], row["ours"], row["calculon"], row["took"], sep=" | ", flush=True)
        write_results(RESULTS, result)
        RESULTS.with_suffix(".md").write_text(summary(result), encoding="utf-8")
    return 0


def asked(question: Question, args: argparse.Namespace) -> Any:
    """Name and answer of each planner: ``took``, and ``plan`` (ours) or ``decided``, or ``failed`` with the reason."""
    yield "autoplan", ours(question, (), args.limit)
    try:
        application = application_of(question.size)
    except NotSaid:
        application = None
    if application:
        narrower = [ours(question, _narrowed(question, sharded), args.limit) for sharded in (True, False)]
        yield "autoplan, same space", _better(narrower)
    if args.calculon:
        yield "calculon", calculons(question, application, args)
    if args.galvatron:
        for uniform in (False, True):
            yield f"galvatron{', uniform' if uniform else ''}", galvatrons(question, uniform, args)


def _narrowed(question: Question, sharded: bool) -> tuple[str, ...]:
    pins = [f"--pin={name}={value}" for name, value in pins_of(question.size, sharded).items()]
    return (*pins, *(f"--forbid={name}={value}" for name, value in FORBID))


def _better(answers: list[Row]) -> Row:
    """The one with the faster plan, as if both searches were one."""
    took = {
        name: (max if name == "peak_rss_bytes" else sum)(answer["took"][name] for answer in answers)
        for name in answers[0]["took"]
    }
    found = [answer for answer in answers if "plan" in answer]
    return (min(found, key=lambda answer: answer["said_s"]) if found else answers[0]) | {"took": took}


def ours(question: Question, options: tuple[str, ...], limit_s: float) -> Row:
    command = [sys.executable, "-m", "autoplan", "search", question.model, f"--cluster={question.profile}"]
    command += [f"--gpus={question.gpus}", f"--global-batch={question.batch}", "--json", *options]
    answer, took = run(command, "", limit_s)
    if not isinstance(answer, dict) or not answer.get("plan"):
        return {"took": took, "failed": answer if isinstance(answer, str) else str(answer.get("conflict"))}
    took["planning_s"] = answer["search"]["seconds"]
    fields = {name: value for name, value in answer["plan"].items() if name in Plan.__struct_fields__}
    return {"took": took, "plan": msgspec.convert(fields, Plan), "said_s": answer["estimate"]["step_time_s"]}


def calculons(question: Question, application: Row | None, args: argparse.Namespace) -> Row:
    if application is None:
        return {"took": {}, "failed": "no such blocks (gated MLP)"}
    asks = {
        "application": application,
        "system": system_of(question.cluster, "bf16"),
        "search": {
            "processes": question.gpus,
            "batch": question.batch,
            "datatype": "bfloat16",
            "tp_overlap": False,
        },
    }
    command = [args.calculon_python, str(HERE / "calculon_worker.py"), str(args.calculon)]
    answer, took = run(command, json.dumps(asks) + "\n", args.limit)
    if isinstance(answer, str) or answer["execution"] is None:
        return {"took": took, "failed": answer if isinstance(answer, str) else "nothing fits by its count"}
    took["planning_s"] = answer["seconds"]
    return {
        "took": took,
        "decided": from_calculon(answer["execution"]),
        "said_s": answer["stats"]["total_time"],
    }


def galvatrons(question: Question, uniform: bool, args: argparse.Namespace) -> Row:
    asks = json.dumps(galvatron_question(question, uniform=uniform))
    answer, took = run([args.galvatron, str(HERE / "galvatron_worker.py")], asks, args.limit)
    if isinstance(answer, str) or answer["plan"] is None:
        return {"took": took, "failed": answer if isinstance(answer, str) else "nothing fits by its count"}
    took["planning_s"] = answer["seconds"]
    said = {"took": took, "said_s": answer["step_s"], "raw": answer["plan"]}
    try:
        return said | {"decided": decided_by(answer["plan"], question.gpus, question.batch)}
    except NotSaid as reason:
        return said | {"failed": str(reason)}


def run(command: list[str], given: str, limit_s: float) -> tuple[Any, Row]:
    """The JSON that a process of its own prints last, or its last line of complaint; and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "took.json"
        launcher = [sys.executable, "-I", str(HERE / "peer_launcher.py"), str(report), str(limit_s), *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            launcher, input=given, capture_output=True, text=True, env=environment, check=False
        )
        took = json.loads(report.read_text())
    if took.pop("late"):
        return f"no answer in {limit_s:.0f} s", took
    try:
        return json.loads(done.stdout), took
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1], took


def judged(question: Question, answer: Row, judge: Calculon | None) -> Row:
    """The answer with its price under both models, or why it has none."""
    row: Row = {
        "took": answer["took"],
        "said_s": answer.get("said_s"),
        "plan": None,
        "ours": None,
        "calculon": None,
    }
    if "raw" in answer:
        row["raw"] = answer["raw"]
    if "failed" in answer:
        return row | {"failed": answer["failed"]}
    try:
        plan, estimate = priced(question, answer)
    except NotSaid as reason:
        return row | {"plan": str(answer["decided"]), "failed": str(reason)}
    fits = estimate.peak_memory_bytes <= estimate.memory_limit_bytes
    row |= {"plan": short(plan)}
    row["ours"] = {"step_s": estimate.step_time_s, "memory_bytes": estimate.peak_memory_bytes, "fits": fits}
    if judge is not None:
        try:
            row["calculon"] = judge.price(application_of(question.size), question.cluster, plan)
        except NotSaid as reason:
            row["calculon"] = str(reason)
    return row


def priced(question: Question, answer: Row) -> Any:
    """A plan with its price under our model."""
    from autoplan.cost.price import price

    if "decided" in answer:
        decided: Decided = answer["decided"]
        return question.completed(decided)
    plan = answer["plan"]
    return plan, price(question.graph(plan.micro_batch), plan, question.job, question.cluster)


# --- the report


def summary(result: Row) -> str:
    from peers_absent import ABSENT

    machine = result["machine"]
    lines = ["# Side by side with other planners", "", f"{result['date']}, {machine['cpu']}", ""]
    lines += [part for text in (__doc__ or "").split("\n\n")[2:6] for part in (text, "")]
    lines += ["## All questions together", ""]
    lines += ["| planner | answers | run here and fit by our count | CPU seconds, median | most | peak memory, most |"
              " our model: its step over ours, median | least | most | Calculon: its step over ours (same space), median |"]  # fmt: skip
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    names = dict.fromkeys(name for answers in result["questions"].values() for name in answers)
    lines += [_together(name, result["questions"]) for name in names]
    lines += ["", "## Each question", ""]
    lines += ["| question | planner | CPU s | s | peak MB | plan | step by our model | step by Calculon |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for text, answers in result["questions"].items():
        for name, row in answers.items():
            took = row["took"]
            spent = (
                f"{took['cpu_s']:.1f} | {took['wall_s']:.1f} | {took['peak_rss_bytes'] / 1e6:,.0f}"
                if took
                else " | | "
            )
            own = _step(row["ours"]) or row.get("failed", "")
            other = row["calculon"] if isinstance(row["calculon"], str) else _step(row["calculon"])
            lines.append(f"| {text} | {name} | {spent} | {row['plan'] or ''} | {own} | {other} |")
    lines += ["", "## Not here, and why", "", *(f"- {name}: {why}" for name, why in ABSENT.items())]
    return "\n".join(lines) + "\n"


def _step(price: Row | None) -> str:
    return "" if not price else f"{price['step_s']:.3f} s{'' if price['fits'] else ', does not fit'}"


def _together(name: str, questions: Row) -> str:
    rows = [(answers[name], answers) for answers in questions.values() if name in answers]
    took = [row["took"] for row, _ in rows if row["took"]]
    fitting = sum(bool(row["ours"] and row["ours"]["fits"]) for row, _ in rows)
    ratios = [
        row["ours"]["step_s"] / answers["autoplan"]["ours"]["step_s"] for row, answers in rows if row["ours"]
    ]
    same = "autoplan, same space"
    judged = [
        row["calculon"]["step_s"] / answers[same]["calculon"]["step_s"]
        for row, answers in rows
        if isinstance(row["calculon"], dict) and isinstance(answers.get(same, {}).get("calculon"), dict)
    ]
    cells = [
        name,
        sum(row["plan"] is not None or "raw" in row for row, _ in rows),
        fitting,
        f"{statistics.median(t['cpu_s'] for t in took):.1f}" if took else "",
        f"{max(t['cpu_s'] for t in took):.1f}" if took else "",
        f"{max(t['peak_rss_bytes'] for t in took) / 1e6:,.0f} MB" if took else "",
        *(
            (f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
            if ratios
            else ("", "", "")
        ),
        f"{statistics.median(judged):.3f} ({len(judged)})" if judged else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
