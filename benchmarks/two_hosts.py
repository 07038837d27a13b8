"""Two hosts on this one: network namespaces joined by a rate-limited link (Linux, as root, with iproute2).

Each namespace has its own loopback, over which its ranks talk, and one end of a veth pair as its network
card. ``tc tbf`` limits what leaves either. Frames are 9000 bytes, so that headers take under 1 %; the token
bucket is small beside the messages that are timed, or they would pass unhindered.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Host", "emulated_hosts", "why_not"]

FRAME_BYTES = 9000
BUCKET_BYTES = 16 << 10
QUEUE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace: its name for ``ip netns exec``, its network card, and that card's address."""

    namespace: str
    card: str
    address: str

    def environment(self) -> dict[str, str]:
        """What gloo needs to know."""
        return {"GLOO_SOCKET_IFNAME": self.card}


def why_not() -> str:
    """Why hosts cannot be emulated here; empty if they can."""
    if not (shutil.which("ip") and shutil.which("tc")):
        return "iproute2 (ip, tc) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with emulated_hosts(1e9, 1e9):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` fails here: {error.stderr.strip()}"


@contextlib.contextmanager
def emulated_hosts(link_bits_per_s: float, local_bits_per_s: float) -> Iterator[tuple[Host, Host]]:
    """Two hosts with that much on the link between them (each way), and on each one's loopback (in all).

    Raises:
        subprocess.CalledProcessError: the kernel, or the rights of this process, do not allow it.
    """
    tag = f"{os.getpid() % 100000}"
    hosts = tuple(Host(f"ap{tag}{side}", f"ap{tag}{side}0", f"10.77.0.{i}") for i, side in enumerate("ab", 1))
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", first.card, "netns", first.namespace, "type", "veth", "peer", "name", second.card,
            "netns", second.namespace)  # fmt: skip
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.card)
            for device, rate in ((host.card, link_bits_per_s), ("lo", local_bits_per_s)):
                _ip("-n", host.namespace, "link", "set", device, "mtu", str(FRAME_BYTES), "up")
                _limit(host.namespace, device, rate)
        yield first, second
    finally:
        for host in hosts:  # takes the links along
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def _limit(namespace: str, device: str, bits_per_s: float) -> None:
    rate = ["rate", f"{bits_per_s:.0f}bit", "burst", str(BUCKET_BYTES), "limit", str(QUEUE_BYTES)]
    _run(["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *rate])


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
