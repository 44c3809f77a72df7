"""The model of a run, loaded from its folder."""

from __future__ import annotations

from pathlib import Path

from zslx.config.run_config import Config
from zslx.model.hugging_face import vocabulary_of
from zslx.model.transformer import Model, build_model
from zslx.model.weights import load_weights
from zslx.runs import checkpoints
from zslx.runs.records import read_config


def reference_model(folder: str, method: str) -> Model:
    """The final weights of a finished run, frozen."""
    if not folder:
        raise ValueError(f"{method} needs a reference model: give reference=RUN_FOLDER of a finished run")
    return load_run_model(folder).requires_grad_(False)


def reference_actions(folder: str, method: str) -> list[list[float]]:
    """What the controller of `method` did in a finished run of it, a list a reading."""
    if not folder:
        raise ValueError(f"placebo:{method} needs a run of {method}: give reference=RUN_FOLDER of a finished one")
    kept = Path(folder) / checkpoints.CHECKPOINTS
    available = checkpoints.steps(kept)
    states = checkpoints.load(kept, available[-1])["interventions"] if available else {}
    if "actions" not in states.get(method, {}):
        ran = f"a run of {'+'.join(states) or 'none'}" if available else "no run that got to its first checkpoint"
        raise ValueError(f"reference={folder!r} is {ran}; allowed is a finished run of {method}")
    return states[method]["actions"]


def load_run_model(folder: str | Path, step: int | None = None) -> Model:
    """The model of a run at a checkpoint (the last by default). The run's text is not needed, and not read."""
    folder = Path(folder)
    config = Config.from_dict(read_config(folder))
    available = checkpoints.steps(folder / "checkpoints")
    if not available or (step is not None and step not in available):
        raise ValueError(f"{folder}: no checkpoint{'' if step is None else f' at step {step}'}; there are {available}")
    state = checkpoints.load(folder / "checkpoints", available[-1] if step is None else step)
    weights = state["model"]
    rows = vocabulary_of(config.model, weights) if config.model.hf else len(weights["embedding.weight"])
    model = build_model(config, rows, None)
    load_weights(model, weights)
    model.depth = state.get("depth", model.depth)
    return model
