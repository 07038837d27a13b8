"""Runs inside Calculon's own Python: prices executions, or searches, as the lines on standard input ask.

    PYTHON calculon_worker.py CHECKOUT

Each line is JSON: ``application``, ``system``, and either ``executions``, to which the answer is a list of
``{"stats": ...}`` or ``{"error": ...}``, or ``search`` with ``processes``, ``batch`` and ``datatype``, to which it is the
best ``execution`` with its ``stats``, how many were priced, and what that took. This file alone imports Calculon, which is
no part of this repository.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import resource
import sys
import time
from typing import Any


def main() -> int:
    sys.path.insert(0, sys.argv[1])
    from calculon import System  # type: ignore[import-not-found]
    from calculon.llm import Llm  # type: ignore[import-not-found]

    for line in sys.stdin:
        asked = json.loads(line)
        application, system = Llm.Application(asked["application"]), System(asked["system"])
        if "search" in asked:
            answer: Any = searched(Llm, application, system, asked["search"])
        else:
            answer = [priced(Llm, application, system, execution) for execution in asked["executions"]]
        print(json.dumps(answer), flush=True)
    return 0


def priced(llm: Any, application: Any, system: Any, execution: dict[str, Any]) -> dict[str, Any]:
    """Calculon's figures of one execution, or why it has none."""
    try:
        model = llm(application, logging.Logger("quiet"))
        model.compile(system, llm.Execution.from_json(execution))
        model.run(system)
    except (llm.Error, AssertionError) as error:
        return {"error": str(error) or type(error).__name__}
    return {"stats": model.get_stats_json(False)}


def searched(llm: Any, application: Any, system: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Calculon's own exhaustive search in this one process, with its default options."""
    from calculon.llm.optimal_execution import OptimalExecution  # type: ignore[import-not-found]

    processes, batch = question["processes"], question["batch"]
    began, began_cpu = time.monotonic(), time.process_time()
    best: list[Any] = []
    count = 0
    for tp in llm.get_all_tensor_parallelisms(processes, application.hidden, application.attn_heads):
        for pp in llm.get_all_pipeline_parallelisms(processes, tp, application.num_blocks):
            dp = llm.get_data_parallelism(processes, tp, pp)
            if batch % dp:
                continue
            for chunks in llm.get_valid_pipeline_interleavings(application.num_blocks, pp):
                for recompute in ("full", "attn_only", "none"):
                    for sharding in (True, False) if dp > 1 else (False,):
                        for communication in ("ar", "p2p_rs_ag", "rs_ag"):
                            with contextlib.redirect_stdout(io.StringIO()):
                                found, tried, *_ = OptimalExecution.search(
                                    False, 1, False, processes, batch, question["datatype"], application, system,
                                    tp, pp, dp, chunks, batch, recompute, sharding, communication, [True], True,
                                    question["tp_overlap"], True,
                                )  # fmt: skip
                            count += tried
                            best = OptimalExecution.update_list(best, found, 1)
    return {
        "execution": best[0][1] if best else None,
        "stats": best[0][2] if best else None,
        "priced": count,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
