"""What a benchmark's figures depend on, and where they go."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

import autoplan
from autoplan.hardware.machine import device_name

__all__ = ["surroundings", "write_results"]


def surroundings() -> dict[str, Any]:
    """The day, the machine with its load, and the versions."""
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": device_name(torch.device("cpu")),
            "system": platform.system(),
            "load_before": [round(load, 2) for load in os.getloadavg()],
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "autoplan": autoplan.__version__,
        },
    }


def write_results(path: Path, result: dict[str, Any]) -> None:
    """``result`` as JSON in ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
