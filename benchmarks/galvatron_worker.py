"""Runs inside Galvatron's own Python: searches once, for the question on standard input, and prints the plan as JSON.

    VENV/bin/python galvatron_worker.py < question.json

The question holds ``options`` of Galvatron's search engine, the model's ``layers``, ``hidden`` and ``seq``, and ``files``:
profiles by name, as its own profilers write them. This file alone imports Galvatron, which is no part of this repository.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any


def main() -> int:
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        answer = searched(asked, Path(folder))
    print(json.dumps(answer))
    return 0


def searched(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The plan that it writes, or none, and the seconds that its engine took."""
    engine_of, options_of = _engine()
    for name, content in asked["files"].items():
        (folder / name).write_text(json.dumps(content))
    parser = argparse.ArgumentParser()
    options_of(parser)
    options = [f"--{name}={value}" for name, value in asked["options"].items()]
    paths = ("memory_profiling_path", "time_profiling_path", "allreduce_bandwidth_config_path", "p2p_bandwidth_config_path",
             "overlap_coe_path", "sp_time_path", "output_config_path", "log_dir")  # fmt: skip
    options += [f"--{name}={folder}" for name in paths]
    args = parser.parse_args([*options, "--sequence_parallel"])
    args.hidden_size = asked["hidden"]
    before = set(folder.iterdir())
    began, began_cpu = time.monotonic(), time.process_time()
    engine = engine_of(args)
    layers = {"hidden_size": asked["hidden"], "layer_num": asked["layers"], "seq_len": asked["seq"]}
    engine.set_search_engine_info(str(folder), [layers], "model")
    engine.set_model_type("gpt")
    engine.initialize_search_engine()
    throughput = engine.parallelism_optimization()
    took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - began_cpu}
    written = [path for path in set(folder.iterdir()) - before if path.name.startswith("galvatron_config")]
    plan = json.loads(written[0].read_text()) if written else None
    return took | {"plan": plan, "step_s": asked["options"]["settle_bsz"] / throughput if plan else None}


def _engine() -> tuple[Any, Any]:
    """Its search engine and its options, without its runtime, whose import wants CUDA extensions."""
    import galvatron  # type: ignore[import-not-found]

    core = types.ModuleType("galvatron.core")
    core.__path__ = [str(Path(galvatron.__file__).parent / "core")]
    sys.modules["galvatron.core"] = core
    engine = importlib.import_module("galvatron.core.search_engine.search_engine")
    options = importlib.import_module("galvatron.core.search_engine.arguments")
    return engine.GalvatronSearchEngine, options.galvatron_search_args


if __name__ == "__main__":
    sys.exit(main())
