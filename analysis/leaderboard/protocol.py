"""ZSL-bench: what a study must be like for its rows to stand in the leaderboard, at two scales.

Sizes, tokens, seeds, controls and the other settings are those of a preset, so that one command is the protocol; the
rule is that of analysis/inference/evidence.py. A study that departs from it is listed apart, for the
reasons found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.inference.controls import adds_cosine
from analysis.inference.looks import looks_of
from analysis.leaderboard.tuning import MOST_POINTS, tuning_departures
from analysis.study.arm import Arm, rate_factor
from analysis.study.load import Study, Trial
from zslx.config.presets import preset
from zslx.intervention.class_text import shipped_placebos
from zslx.runs.digest import PLACES, hashed_settings
from zslx.runs.records import OVER

NAME = "ZSL-bench"
SEEDS = 10
RATES = (0.5, 2.0)
NOTHING = "nothing"  # of a setting that is not there
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
    yield from other_seeds(study)
    for factor in RATES:
        if not any(rate_factor(arm.name) == factor for arm in study.arms):
            yield f"no baseline at {factor:g} times its rate"
    if not any(arm.parts == {"cosine"} and arm.role != "placebo" for arm in study.arms):
        yield "no cosine"
    yield from tuning_departures(study)
    if lost := sum(trial.status not in OVER for trial in study.trials):
        yield f"{lost} trials are not done"
    found: list[str] = []
    for size in scale.sizes:
        trial = next(study.of(study.baseline.name, size), None)
        if trial is None:
            found.append(f"no baseline at {size}")
            continue
        for trial in study.of(study.baseline.name, size):
            found += other_settings(trial, scale, study.baseline.rates.get(size) if study.tuning else None)
            if trial.status == "finished" and (tokens := int(trial.probe_tokens[-1])) != scale.tokens:
                found.append(f"{tokens:,} tokens a trial; the protocol has {scale.tokens:,}")
    texts = {(t.manifest.get("ingredients") or {}).get("corpus") for t in study.of(study.baseline.name)}
    if None in texts or len(texts) > 1:
        found.append("its trials do not have one text")
    yield from dict.fromkeys(found)


def other_seeds(study: Study) -> Iterator[str]:
    """How seeds and looks depart: both are chosen before there are results."""
    seeds, looks, planned = study.seeds, study.looks, looks_of(SEEDS)
    if looks not in ((), planned):
        told, meant = (", ".join(map(str, of)) for of in (looks, planned))
        yield f"looks after {told} seeds; the protocol has none, or {meant}"
    elif len(seeds) not in (looks or (SEEDS,)):
        yield f"{len(seeds)} seeds; {SEEDS}, or planned looks up to them, are needed"
    if seeds != tuple(range(len(seeds))):
        yield f"seeds {', '.join(map(str, seeds))}; the protocol has 0 to {SEEDS - 1}"


def other_settings(trial: Trial, scale: Scale, factor: float | None) -> Iterator[str]:
    """The settings of a baseline trial that are not those of the protocol: those that were hashed, and where its text
    and tokenizer lie. `factor`: on the rate, where a tuning found one."""
    meant = preset(scale.preset).for_size(trial.size).to_dict()
    if factor:
        meant["optim"]["lr"] = float(f"{meant['optim']['lr'] * factor:.3g}")
    hashed = (trial.manifest.get("ingredients") or {}).get("config") or {}
    for group, wanted in ((group, hashed_settings(meant)[group]) for group in ("model", "data", "optim", "train")):
        found = dict(hashed.get(group) or {})
        if group == "data":
            said = trial.config.get(group) or {}
            found |= {key: said.get(key, NOTHING) for key in PLACES[group]}
            wanted |= {key: meant[group][key] for key in PLACES[group]}
        for key in dict.fromkeys([*wanted, *found]):
            has, needed = found.get(key, NOTHING), wanted.get(key, NOTHING)
            if key not in FREE and has != needed:
                yield f"{group}.{key} {str(has)[:40] or 'none'}; the protocol has {str(needed)[:40] or 'none'}"


def arm_departures(study: Study, arm: Arm) -> Iterator[str]:
    """What the protocol has of an arm beside it and the study lacks."""
    others = [other for other in study.arms if other != arm]
    if has_placebo(arm) and not any(other.role == "placebo" and other.of == arm.name for other in others):
        yield "its placebo was not run"
    if "cosine" not in arm.parts and not any(adds_cosine(other, arm) for other in others):
        yield "not run with cosine"


def has_placebo(arm: Arm) -> bool:
    """Whether a placebo exists: as study.json says, and of what comes with zslx whatever it says."""
    return arm.has_placebo or any(shipped_placebos().get(part, False) for part in arm.parts)


def in_words(scale: Scale) -> tuple[str, ...]:
    """A row of the protocol's table."""
    return (scale.name, ", ".join(scale.sizes), f"{scale.tokens:,}", str(SEEDS), scale.command)


def controls() -> str:
    """What every study of the protocol has beside its methods, and how they may be tuned."""
    rates = " and ".join(f"{rate:g}" for rate in RATES)
    return (
        f"Controls: the baseline at {rates} times its learning rate; cosine; of each method its placebo, where one "
        f"exists, and itself with cosine. Tuning: rates on a grid, or a search of up to {MOST_POINTS} points for each "
        "method and for the baseline, without successive halving, on seeds that the comparison does not use. Its "
        "trials are not in the archive, so that rows of a tuned study say: tuning not verified."
    )
