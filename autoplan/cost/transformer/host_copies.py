"""What waits in the host's memory: activations of some layers, and the optimizer's state.

Copies of activations run beside the layers' own compute (Rhu et al., 2016, vDNN; Megatron-Core's
``cpu_offloading_num_layers``): only what the link cannot carry in that time is waited for. With the
optimizer on the host (Ren et al., 2021, ZeRO-Offload), gradients travel there, the step runs there, and
parameters travel back. Profiles hold no bandwidth of the host's memory, so the link's stands for it: nodes
share one memory among devices, whose links together are about as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.work_times import Passes
from autoplan.errors import ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["host_step_s", "with_parked_activations"]


def with_parked_activations(layer: Passes, saved_bytes: Any, c: Configuration, cluster: Cluster) -> Passes:
    """``layer`` with what it waits for copies of ``saved_bytes``, averaged over parked layers and others.

    Raises ProfileError where the profile has no link to the host.
    """
    parked = np.asarray(c.parked)
    if not np.any(parked > 0):
        return layer
    nbytes = np.maximum(parked * saved_bytes, 1.0)
    away = np.where(parked > 0, _copy_s(cluster, nbytes, "to_host"), 0.0)
    back = np.where(parked > 0, _copy_s(cluster, nbytes, "from_host"), 0.0)
    return layer + Passes(
        {"host_copies": np.maximum(away - layer.forward_s, 0.0)},
        {"host_copies": np.maximum(back - layer.backward_s, 0.0)},
    )


def host_step_s(elements: Any, touched_bytes: float, sent_bytes: float, cluster: Cluster) -> Any:
    """Seconds of a step of ``elements`` on the host, each with ``touched_bytes`` there and ``sent_bytes``
    on the link. Raises ProfileError where the profile has no link to the host."""
    return _copy_s(cluster, np.maximum(elements * (touched_bytes + sent_bytes), 1.0), "to_host")


def _copy_s(cluster: Cluster, nbytes: Any, direction: str) -> Any:
    host = cluster.device.host
    if host is None:
        raise ProfileError(
            "device.host",
            None,
            "a link to the host's memory",
            "add one to the profile, or keep all on the device",
        )
    return host.time_s(nbytes, "to_host" if direction == "to_host" else "from_host")
