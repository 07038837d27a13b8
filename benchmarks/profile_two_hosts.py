"""Measure two emulated hosts as an operator would, and compare the profile's levels with what was set.

    python benchmarks/profile_two_hosts.py              (as root, on Linux with iproute2; about three minutes)

Two network namespaces are joined by a rate-limited link, their loopbacks are limited too, and
``torchrun ... -m autoplan profile`` runs in both with two ranks each. The figures are those of the profile that
it writes. Exit status 1 if a level is missing or its bandwidth is more than 10 % off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results
from two_hosts import Host, emulated_hosts, why_not

from autoplan.hardware import Cluster

EACH = 2
BOUND = 0.1
LIMIT_S = 900
SETTINGS = ((500e6, 1e9), (200e6, 800e6))
"""Bits a second of the link, and of each host's loopback."""


def main() -> int:
    args = arguments()
    if reason := why_not():
        print(f"profile_two_hosts: two hosts cannot be emulated here: {reason}", file=sys.stderr)
        return 2
    runs = [measured(link, local) for link, local in SETTINGS]
    for run in runs:
        print(f"{run['topology']}; {run['seconds']} s")
        for level in run["levels"]:
            print(
                f"  {level['name']:8} {level['size']} joined, {level['links']} link: set {level['set_bits_per_s']:.4g}, "
                f"measured {level['measured_bits_per_s']:.4g} bit/s, {level['error']:+.1%}"
            )
    worst = max(abs(level["error"]) for run in runs for level in run["levels"])
    passed = worst <= BOUND and all(len(run["levels"]) == 2 for run in runs)
    print(f"{'pass' if passed else 'FAIL'}: two levels, worst bandwidth {worst:.1%} off, bound {BOUND:.0%}")
    verdict = {"worst_error": round(worst, 4), "bound": BOUND, "passed": passed}
    write_results(args.out, {**surroundings(), "runs": runs, "verdict": verdict})
    return 0 if passed else 1


def measured(link_bits_per_s: float, local_bits_per_s: float) -> dict[str, Any]:
    """One measurement: each level beside what was set."""
    with tempfile.TemporaryDirectory() as folder, emulated_hosts(link_bits_per_s, local_bits_per_s) as hosts:
        profile = Path(folder) / "two-hosts.toml"
        start_s = time.monotonic()
        ranks = [launched(host, node, hosts[0], profile) for node, host in enumerate(hosts)]
        try:
            codes = [process.wait(timeout=LIMIT_S) for process in ranks]
        finally:
            for process in ranks:
                process.terminate()  # the launcher takes its ranks along
        if any(codes):
            raise SystemExit(f"profile_two_hosts: torchrun failed: exit status {codes}")
        cluster = Cluster.load(profile)
        seconds = round(time.monotonic() - start_s, 1)
    wanted = (local_bits_per_s, link_bits_per_s)
    levels = [
        {
            "name": level.name,
            "size": level.size,
            "links": level.nics,
            "set_bits_per_s": bits,
            "measured_bits_per_s": level.bandwidth_bytes_per_s * 8,
            "error": round(level.bandwidth_bytes_per_s * 8 / bits - 1, 4),
            "spread": level.spread.get("bandwidth_bytes_per_s"),
        }
        for level, bits in zip(cluster.levels, wanted, strict=True)
    ]
    return {
        "topology": str(cluster.sources["run"].settings["topology"]),
        "seconds": seconds,
        "levels": levels,
    }


def launched(host: Host, node: int, first: Host, profile: Path) -> subprocess.Popen[bytes]:
    """torchrun on one host."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
    torchrun += ["--nproc-per-node", str(EACH), "--master-addr", first.address, "--master-port", "29500"]
    profiling = [
        "-m",
        "autoplan",
        "profile",
        "--quick",
        "--sizes",
        "4KiB,64KiB,1MiB,4MiB",
        "--out",
        str(profile),
    ]
    command = ["ip", "netns", "exec", host.namespace, *torchrun, *profiling]
    return subprocess.Popen(
        command, env=os.environ | host.environment() | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "results" / "profile_two_hosts.json"
    parser.add_argument("--out", type=Path, default=default, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
