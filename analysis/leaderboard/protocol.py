"""ZSL-bench: what a study must be like for its rows to stand in the leaderboard, at two scales.

Sizes, tokens, seeds, controls and the other settings are those of a preset, so that one command is the protocol; the
rule is that of analysis/inference/evidence.py. A study that departs from it is listed apart, for the
reasons found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.inference.controls import adds_cosine
from analysis.study.arm import Arm, rate_factor
from analysis.study.load import Study
from zslx.config.presets import preset
from zslx.runs.records import OVER

NAME = "ZSL-bench"
SEEDS = 10
RATES = (0.5, 2.0)
MOST_POINTS = 16  # of a search, for each arm and for the baseline
# What changes with the trial or the machine, and is no choice of who trains.
FREE = ("seed", "device", "threads", "compile", "micro_batch", "checkpointing", "loss_chunk", "deterministic")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale of the protocol: a preset, whose sizes and settings are meant, and how a study of it is asked for."""

    name: str
    preset: str
    command: str

    @property
    def sizes(self) -> tuple[str, ...]:
        return preset(self.preset).sizes

    @property
    def tokens(self) -> int:
        """That each trial trains on."""
        config = preset(self.preset).config
        return config.train.steps * config.data.batch_size * config.data.seq_len


LAPTOP = Scale(name="laptop", preset="verdict", command="zslx sweep METHOD --preset verdict")
GPU = Scale(name="one GPU", preset="gpu", command="zslx sweep gpu-verdict.toml")
SCALES = (LAPTOP, GPU)


def scale_of(study: Study) -> Scale | None:
    """The scale whose sizes a study has, in any order."""
    return next((scale for scale in SCALES if set(scale.sizes) == set(study.sizes)), None)


def departures(study: Study, scale: Scale) -> Iterator[str]:
    """How a study as a whole departs from the protocol."""
    if (study.looks and study.looks[-1] < SEEDS) or (not study.looks and len(study.seeds) < SEEDS):
        yield f"{len(study.seeds)} seeds; {SEEDS}, or planned looks up to them, are needed"
    for factor in RATES:
        if not any(rate_factor(arm.name) == factor for arm in study.arms):
            yield f"no baseline at {factor:g} times its rate"
    if not any(arm.parts == {"cosine"} and arm.role != "placebo" for arm in study.arms):
        yield "no cosine"
    tuning = study.tuning or {}
    if int(tuning.get("points") or 0) > MOST_POINTS:
        yield f"a search of {tuning['points']} points an arm; allowed are {MOST_POINTS}"
    if tuning.get("halving"):
        yield "a search with successive halving, which favours what is fast at first"
    if lost := sum(trial.status not in OVER for trial in study.trials):
        yield f"{lost} trials are not done"
    found: list[str] = []
    for size in scale.sizes:
        trial = next(study.of(study.baseline.name, size), None)
        if trial is None:
            found.append(f"no baseline at {size}")
            continue
        for trial in study.of(study.baseline.name, size):
            found += other_settings(trial.config, scale, size, tuned=bool(tuning))
            if trial.status == "finished" and (tokens := int(trial.probe_tokens[-1])) != scale.tokens:
                found.append(f"{tokens:,} tokens a trial; the protocol has {scale.tokens:,}")
    yield from dict.fromkeys(found)


def other_settings(config: Mapping[str, Any], scale: Scale, size: str, *, tuned: bool) -> Iterator[str]:
    """The settings of a baseline trial that are not those of the protocol."""
    meant = preset(scale.preset).for_size(size).to_dict()
    for group in ("model", "data", "optim", "train"):
        for key, value in meant[group].items():
            found = (config.get(group) or {}).get(key, value)
            free = key in FREE or (tuned and key == "lr")
            if not free and found != value:
                yield f"{group}.{key} {str(found)[:40]}; the protocol has {str(value)[:40] or 'none'}"


def arm_departures(study: Study, arm: Arm) -> Iterator[str]:
    """What the protocol has of an arm beside it and the study lacks."""
    others = [other for other in study.arms if other != arm]
    if arm.has_placebo and not any(other.role == "placebo" and other.of == arm.name for other in others):
        yield "its placebo was not run"
    if "cosine" not in arm.parts and not any(adds_cosine(other, arm) for other in others):
        yield "not run with cosine"


def in_words(scale: Scale) -> tuple[str, ...]:
    """A row of the protocol's table."""
    return (scale.name, ", ".join(scale.sizes), f"{scale.tokens:,}", str(SEEDS), scale.command)


def controls() -> str:
    """What every study of the protocol has beside its methods, and how they may be tuned."""
    rates = " and ".join(f"{rate:g}" for rate in RATES)
    return (
        f"Controls: the baseline at {rates} times its learning rate; cosine; of each method its placebo, where one "
        f"exists, and itself with cosine. Tuning: rates on a grid, or a search of up to {MOST_POINTS} points for each "
        "method and for the baseline, without successive halving, on seeds that the comparison does not use."
    )
