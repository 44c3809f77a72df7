"""What a run was computed with: versions, hardware, revision. Recorded, no part of a trial's identity."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import zslx
from zslx.config.run_config import Config
from zslx.versions import version

PACKAGES = ("torch", "numpy", "scipy", "tokenizers", "safetensors", "einops", "ray", "transformers")


def environment(config: Config) -> dict[str, Any]:
    """Versions and hardware, without host names, users or paths."""
    hardware = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": config.train.threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    own = {"zslx": zslx.__version__, "python": platform.python_version()}
    packages = {name: found for name in PACKAGES if (found := version(name)) is not None}
    return {"versions": own | packages, "hardware": hardware, "revision": _revision()}


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@cache
def _revision() -> str | None:
    """The git revision of the code, with `+` when there are changes; None outside a checkout."""
    root = Path(zslx.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
