"""Two hosts, emulated with network namespaces: the profile has two levels, with the bandwidths that were set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_hosts import why_not

from autoplan.hardware import Cluster
from autoplan.hardware.machine import cores

LINK_BITS_PER_S, LOCAL_BITS_PER_S = 80e6, 160e6
TIMEOUT_S = 300
BUSY = 4  # runnable processes for each core beyond which a message waits longer for a core than for the link


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    if reason := why_not():
        pytest.skip(f"two hosts cannot be emulated here: {reason}")
    if os.getloadavg()[0] > BUSY * cores():
        pytest.skip(f"others keep this machine too busy to time anything: load {os.getloadavg()[0]:.0f}")
    profile = tmp_path_factory.mktemp("hosts") / "two-hosts.toml"
    script = Path(__file__).with_name("host_ranks.py")
    command = [sys.executable, str(script), str(profile), str(LINK_BITS_PER_S), str(LOCAL_BITS_PER_S)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return Cluster.load(profile)


def test_the_hosts_and_their_network_are_levels(cluster: Cluster) -> None:
    assert [(level.name, level.size) for level in cluster.levels] == [("node", 2), ("network", 2)]
    assert "2 nodes of 2 ranks" in str(cluster.sources["run"].settings["topology"])


@pytest.mark.parametrize(("level", "bits_per_s"), [(0, LOCAL_BITS_PER_S), (1, LINK_BITS_PER_S)])
def test_their_bandwidths_are_those_that_were_set(cluster: Cluster, level: int, bits_per_s: float) -> None:
    measured = cluster.levels[level].bandwidth_bytes_per_s * 8
    assert measured == pytest.approx(bits_per_s, rel=0.1)


def test_the_ranks_of_a_host_share_its_card(cluster: Cluster) -> None:
    network = cluster.levels[1]
    assert network.nics == 1
    assert {table.at_once for table in network.curves} == {"all", "one"}
