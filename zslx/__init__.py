"""zslx: a bench for interventions on the training dynamics of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zslx.config.presets import preset
    from zslx.config.run_config import Config
    from zslx.intervention.base import Intervention, RunView, State, StepStats, StepView, setting
    from zslx.intervention.gradient_method import GROUPINGS, CoordinateSums, GradientMethod, GramianMethod, floating
    from zslx.intervention.registry import load_intervention
    from zslx.training.loop import train

__version__ = "0.1.0"

# Loaded on first use, so that `import zslx` and `zslx --help` need no torch.
_BASE, _GRADIENT = "zslx.intervention.base", "zslx.intervention.gradient_method"
HOMES = {
    "Config": "zslx.config.run_config",
    "preset": "zslx.config.presets",
    **dict.fromkeys(("Intervention", "RunView", "State", "StepStats", "StepView", "setting"), _BASE),
    **dict.fromkeys(("CoordinateSums", "GROUPINGS", "GradientMethod", "GramianMethod", "floating"), _GRADIENT),
    "load_intervention": "zslx.intervention.registry",
    "train": "zslx.training.loop",
}
__all__ = [
    "GROUPINGS",
    "Config",
    "CoordinateSums",
    "GradientMethod",
    "GramianMethod",
    "Intervention",
    "RunView",
    "State",
    "StepStats",
    "StepView",
    "floating",
    "load_intervention",
    "preset",
    "setting",
    "train",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in HOMES:
        raise AttributeError(f"module 'zslx' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
