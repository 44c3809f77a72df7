"""zslx: a bench for interventions on the training dynamics of language models.

Train a run, read it back, and fit its deceleration:

    import zslx

    config = zslx.preset("smoke").for_size("0.1M")
    zslx.train(config, "runs/one", intervention=zslx.load_intervention("pcgrad", groups="domain"))
    run = zslx.load_run("runs/one")                    # run.steps: columns; run.probes: a dict a probe step
    found = zslx.fit(zslx.curve(run.steps["step"], run.steps["loss"]))
    print(found.status, found.L_d, found.t_d, found.r_d)

Write an intervention: subclass `Intervention`, `GradientMethod`, `GramianMethod` or `Controller` with fields made by
`setting`, and implement the hooks that you need; hooks see `RunView`, `StepView`, `StepStats` or `CoordinateSums`, and
remember in `State`. `sequence_stats` and `group_stats` give the gradients of the groups of any model's batch. `sweep`
compares interventions with the baseline, classes of a notebook cell, too; `load_study` gives what a sweep
left as pandas frames and figures.
docs/api.md lists every name; the guides are in docs/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zslx.config.presets import preset
    from zslx.config.run_config import Config
    from zslx.deceleration.fit import fit
    from zslx.deceleration.fit_options import FitOptions
    from zslx.deceleration.loss_curve import curve
    from zslx.gradients import group_stats, sequence_stats
    from zslx.intervention.base import Intervention, RunView, State, StepStats, StepView, setting
    from zslx.intervention.controller import Controller
    from zslx.intervention.gradient_method import GROUPINGS, CoordinateSums, GradientMethod, GramianMethod, floating
    from zslx.intervention.registry import load_intervention
    from zslx.runs.records import read_run as load_run
    from zslx.training.pack import train_pack
    from zslx.training.train import train

__version__ = "0.1.0"  # the one place; pyproject.toml reads it here

# Where each public name is defined. Loaded on first use, so that `import zslx` and `zslx --help` need no torch.
_BASE, _GRADIENT = "zslx.intervention.base", "zslx.intervention.gradient_method"
HOMES = {
    "Config": "zslx.config.run_config",
    "preset": "zslx.config.presets",
    "train": "zslx.training.train",
    "train_pack": "zslx.training.pack",
    "load_run": "zslx.runs.records",
    "sweep": "sweeps.session",
    "load_study": "analysis.report.notebook",
    "fit": "zslx.deceleration.fit",
    "FitOptions": "zslx.deceleration.fit_options",
    "curve": "zslx.deceleration.loss_curve",
    "load_intervention": "zslx.intervention.registry",
    **dict.fromkeys(("Intervention", "RunView", "State", "StepStats", "StepView", "setting"), _BASE),
    "Controller": "zslx.intervention.controller",
    **dict.fromkeys(("CoordinateSums", "GROUPINGS", "GradientMethod", "GramianMethod", "floating"), _GRADIENT),
    **dict.fromkeys(("group_stats", "sequence_stats"), "zslx.gradients"),
}
__all__ = [
    "GROUPINGS",
    "Config",
    "Controller",
    "CoordinateSums",
    "FitOptions",
    "GradientMethod",
    "GramianMethod",
    "Intervention",
    "RunView",
    "State",
    "StepStats",
    "StepView",
    "curve",
    "fit",
    "floating",
    "group_stats",
    "load_intervention",
    "load_run",
    "load_study",
    "preset",
    "sequence_stats",
    "setting",
    "sweep",
    "train",
    "train_pack",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in HOMES:
        raise AttributeError(f"module 'zslx' has no attribute {name!r}")
    if (package := HOMES[name].partition(".")[0]) != "zslx":
        from zslx.places import ours

        ours(package)
    try:
        module = importlib.import_module(HOMES[name])
    except ModuleNotFoundError as error:
        if package == "zslx":
            raise
        raise ImportError(f"zslx.{name} needs the package {error.name!r}: pip install 'zslx[sweep]'") from error
    return getattr(module, {"load_run": "read_run"}.get(name, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
