"""Measure four ranks on two emulated hosts, and write the profile.

    python tests/host_ranks.py PROFILE LINK_BITS_PER_S LOCAL_BITS_PER_S

Ranks are forked from this process, which imports torch once for all of them, and each moves into the network
namespace of its host. What they are told is what torchrun would tell them.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from two_hosts import Host, emulated_hosts

from autoplan.hardware import write_profile
from autoplan.hardware.measure import measure_cluster
from autoplan.hardware.measure_sizes import TINY

CLONE_NEWNET = 0x40000000
EACH = 2
SIZES = replace(
    TINY, window_s=0.005, visits=3, most_visits=3, messages=(512 << 10,), attention={}, beside_kinds=()
)
PATIENCE = datetime.timedelta(seconds=120)


def rank_of(host: Host, node: int, local: int, first: Host, profile: Path) -> None:
    """One rank, in its own process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{host.namespace}") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    rank = node * EACH + local
    os.environ |= host.environment() | {
        "RANK": str(rank),
        "WORLD_SIZE": str(2 * EACH),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(EACH),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": first.address,
        "MASTER_PORT": "29500",  # its own namespace: nobody else's
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    cluster = measure_cluster("two-hosts", sizes=SIZES, progress=False)
    if rank == 0:
        write_profile(cluster, profile)
    dist.barrier()
    dist.destroy_process_group()


def main(profile: Path, link_bits_per_s: float, local_bits_per_s: float) -> int:
    with emulated_hosts(link_bits_per_s, local_bits_per_s) as hosts:
        children = []
        for node, host in enumerate(hosts):
            for local in range(EACH):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        rank_of(host, node, local, hosts[0], profile)
                        status = 0
                    except BaseException:
                        traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(status)
                children.append(child)
        return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
