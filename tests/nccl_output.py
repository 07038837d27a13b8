"""Output in the formats of nccl-tests and of the PyTorch profiler, for the tests of their importers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autoplan.hardware.level import bus_factor

PROGRAMS = {
    "all_reduce": "all_reduce_perf",
    "all_gather": "all_gather_perf",
    "reduce_scatter": "reduce_scatter_perf",
    "all_to_all": "alltoall_perf",
    "send_recv": "sendrecv_perf",
}
GPU = "NVIDIA H100 80GB HBM3"


def ranks_of(hosts: int, per_host: int, groups: int = 1) -> list[tuple[int, int, str, int]]:
    """(rank, group, host, device) of every rank; groups as NCCL_TESTS_SPLIT="MOD groups" cuts them."""
    return [
        (host * per_host + device, (host * per_host + device) % groups, f"node{host}", device)
        for host in range(hosts)
        for device in range(per_host)
    ]


def nccl_text(
    kind: str,
    sizes: Iterable[int],
    time_s: Callable[[int], float],
    ranks: Sequence[tuple[int, int, str, int]],
    *,
    headers: bool = True,
    stamps: bool = False,
    wrong: str = "0",
) -> str:
    """As ``all_reduce_perf`` prints it (nccl-tests 2.17); ``headers`` off: as before it named itself."""
    n = len(ranks) // len({group for _, group, _, _ in ranks})
    lines = []
    if headers:
        lines += ["# nccl-tests version 2.17.2 nccl-headers=22703 nccl-library=22703"]
        lines += [f"# Collective test starting: {PROGRAMS[kind]}"]
    lines += [
        "# nThread 1 nGpus 1 minBytes 8 maxBytes 1073741824 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0",
        "#",
        "# Using devices",
    ]
    for rank, group, host, device in ranks:
        lines.append(
            f"#  Rank {rank:2} Group {group:2} Pid {6000 + rank:6} on {host:>10} device {device:2} [0000:{device:02x}:00] {GPU}"
        )
    stamp, clock = ("timestamp", "  2026-01-31 12:00:00") if stamps else ("", "")
    names = "time   algbw   busbw  #wrong"
    lines += [
        "#",
        f"# {'':10}  {'':12}  {'':8}  {'':6}  {'':6}           out-of-place                       in-place          ",
        f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}     {names}     {names} {stamp}",
        f"# {'(B)':>10}  {'(elements)':>12}  {'':8}  {'':6}  {'':6}     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)         ",
    ]
    redop = "sum" if kind in ("all_reduce", "reduce_scatter") else "none"
    for size in sizes:
        t = time_s(size)
        alg, bus = size / t / 1e9, bus_factor(kind, n) * size / t / 1e9
        cell = f"  {t * 1e6:7.2f}  {alg:6.2f}  {bus:6.2f}  {wrong:>6}"
        slow = f"  {t * 1.1e6:7.2f}  {alg / 1.1:6.2f}  {bus / 1.1:6.2f}  {wrong:>6}"
        lines.append(f"{size:12}  {size // 4:12}  {'float':>8}  {redop:>6}  {-1:6}{cell}{slow}{clock}")
    lines += ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 100.0 ", "#"]
    return "\n".join(lines) + "\n"


def nccl_json(
    kind: str,
    sizes: Iterable[int],
    time_s: Callable[[int], float],
    ranks: Sequence[tuple[int, int, str, int]],
) -> dict[str, Any]:
    """As ``-J`` writes it (version 2 of its file)."""
    n = len(ranks) // len({group for _, group, _, _ in ranks})

    def body(t: float, size: int) -> dict[str, float]:
        bus = bus_factor(kind, n) * size / t / 1e9
        return {"time": t * 1e6, "alg_bw": size / t / 1e9, "bus_bw": bus, "nwrong": 0.0}

    return {
        "version": 2,
        "start_time": "2026-01-31 12:00:00",
        "args": [f".\\/build\\/{PROGRAMS[kind]}", "-J", "out.json"],
        "env": ["HOME=/root"],
        "nccl_version": 22703,
        "config": {
            "nthreads": 1,
            "ngpus": 1,
            "iterations": 20,
            "devices": [
                {
                    "rank": rank,
                    "group": group,
                    "pid": 6000 + rank,
                    "hostname": host,
                    "device": device,
                    "device_info": GPU,
                }
                for rank, group, host, device in ranks
            ],
        },
        "results": [
            {
                "size": size,
                "count": size // 4,
                "type": "float",
                "redop": "sum",
                "root": "    -1",
                "out_of_place": body(time_s(size), size),
                "in_place": body(time_s(size) * 1.1, size),
                "actual_iterations": 20,
            }
            for size in sizes
        ],
        "average_bus_bandwidth": {"bandwidth": 100.0, "okay": "unchecked"},
    }


class TraceWriter:
    """Events of ``torch.profiler``'s export_chrome_trace: an op, its launch and its kernel share an id."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}}
        ]
        self._id = 100
        self._host_us = 0.0

    def op(
        self,
        name: str,
        dims: Any,
        kernels: Sequence[tuple[str, float, float]],
        dtype: str = "c10::BFloat16",
        wrapper: str | None = None,
    ) -> None:
        """An op with its kernels as (name, start, duration in us), perhaps inside another op."""
        start, types = self._host_us, [dtype] * len(dims)
        args = {"Input Dims": dims, "Input type": types}
        if wrapper is not None:
            self._event("cpu_op", wrapper, start, 20.0, {"Input Dims": [[3, 3]], "Input type": [dtype]})
        self._event("cpu_op", name, start + 1, 18.0, args)
        for kernel, begin, duration in kernels:
            self._id += 1
            self._event("cuda_runtime", "cudaLaunchKernel", start + 5, 2.0, {"correlation": self._id})
            on = {
                "device": 0,
                "stream": 7,
                "correlation": self._id,
                "grid": [132, 1, 1],
                "block": [384, 1, 1],
            }
            self._event("kernel", kernel, begin, duration, on, tid=7)
        self._host_us += 30.0

    def nccl(self, name: str, begin: float, duration: float, elements: int = 1 << 20) -> None:
        args = {"device": 0, "stream": 20, "In msg nelems": elements, "Group size": 8, "dtype": "BFloat16"}
        self._event("kernel", name, begin, duration, args, tid=20)

    def _event(self, cat: str, name: str, ts: float, dur: float, args: dict[str, Any], tid: int = 1) -> None:
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}
        )

    def text(self) -> str:
        return json.dumps({"schemaVersion": 1, "deviceProperties": [], "traceEvents": self.events})
