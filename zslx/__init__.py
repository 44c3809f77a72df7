"""zslx: a bench for interventions on the training dynamics of language models."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Config", "Intervention", "load_intervention", "setting", "train"]

# Loaded on first use, so that `import zslx` and `zslx --help` need no torch.
_HOMES = {
    "Config": "zslx.config.run_config",
    "Intervention": "zslx.intervention.base",
    "setting": "zslx.intervention.base",
    "load_intervention": "zslx.intervention.registry",
    "train": "zslx.training.loop",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'zslx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
