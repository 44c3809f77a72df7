"""A study: what is compared. Arms × sizes × seeds, each trial with its resolved settings and its identity.

Trials are paired: one seed gives the same initial weights, data order and held-out text in every arm. A method's
settings (`pcgrad.groups=domain`) go to every arm that contains the method, its placebo included; settings of the
configuration (`optim.lr=1e-3`) go to every trial. A study's name ends in a hash of its trials' identities: what
would give other numbers (another text, plugin source, version or machine) is another study.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.inference.evidence import VERDICT_SEEDS
from analysis.inference.looks import looks_of
from analysis.study.arm import Arm
from analysis.study.declaration import Declaration, Entry
from sweeps.arms import BASELINE_ARM, plan, with_rates, with_settings
from sweeps.packing import AUTO
from sweeps.planned import PlannedTrial, Planner
from sweeps.rounds import rounds
from zslx.config import presets
from zslx.config.fields import unknown
from zslx.config.run_config import once
from zslx.config.spec import Spec
from zslx.intervention import registry
from zslx.intervention.hooks import claims
from zslx.runs.digest import digest
from zslx.slug import slug

MOST_SEEDS = 1000
# What a sweep decides itself, and by what.
RESERVED = {
    "intervention": "INTERVENTION=",
    "model": "SIZES=",
    "train.seed": "SEEDS=",
    "run.until": "HALVING=",
}


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """What one command line asks for. `asked` are the interventions named there, `pairs` its other settings."""

    name: str
    preset: str
    asked: tuple[str, ...]
    arms: tuple[Arm, ...]
    sizes: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    trials: tuple[PlannedTrial, ...]
    references: tuple[PlannedTrial, ...] = ()  # that trials need; not compared, and none of the trials
    pack: str = AUTO  # which trials are packed: auto, off or how many together
    tuning: Mapping[str, Any] | None = None  # how the arms were tuned (tune_rate.py, search.py)
    contrasts: Mapping[str, str] = field(default_factory=dict)  # arm: what it is compared with beside the baseline
    curve: str = ""  # that a study file declares for L_d, t_d and r_d
    file: str = ""  # the study file (study_file.py), where one was given
    looks: tuple[int, ...] = ()  # after how many seeds it is judged, where it may stop early (inference/looks.py)
    futility: bool = False  # it may also stop where an answer has become improbable
    stage: int | None = None  # of a part of it: the number of its seeds

    @property
    def in_order(self) -> list[PlannedTrial]:
        """Every run to be trained, each reference run before the trials that need it."""
        return [trial for together in rounds([*self.references, *self.trials]) for trial in together]

    @property
    def exploratory(self) -> bool:
        return len(self.seeds[: self.stage]) < VERDICT_SEEDS

    def up_to(self, seeds: int) -> PlannedStudy:
        """The part of it that the first seeds are."""
        chosen = self.seeds[:seeds]
        trials = tuple(trial for trial in self.trials if trial.seed in chosen)
        # A run of a later seed may be the reference of one of these.
        needed = {trial.reference.key: trial.reference for trial in trials if trial.reference}
        own = {trial.key for trial in trials}
        references = tuple(trial for key, trial in needed.items() if key not in own)
        return dataclasses.replace(self, trials=trials, references=references, stage=seeds)

    @property
    def fitted_curve(self) -> str:
        """The loss curve on which L_d, t_d and r_d are compared: the training loss, as in the zero-sum learning paper;
        the held-out loss where an arm trains on other text, lengths or contexts than the baseline, or averages its
        weights. A study file may declare the held-out loss for any arms."""
        return self.curve or ("heldout" if unlike(self.arms) else "training")

    def declaration(
        self, trials: Iterable[Entry], results: str, created: str, references: Iterable[Entry] = ()
    ) -> Declaration:
        """What study.json says of it, with how each of its trials and reference runs stands."""
        sayable = all(len(item.split()) == 1 for item in self.overrides)  # a file's settings may hold white space
        return Declaration(
            name=self.name,
            preset=self.preset,
            arms=self.arms,
            sizes=self.sizes,
            seeds=self.seeds[: self.stage],
            trials=tuple(trials),
            references=tuple(references),
            overrides=self.overrides,
            exploratory=self.exploratory,
            curve=self.fitted_curve,
            tuning=self.tuning,
            contrasts=self.contrasts,
            looks=self.looks,
            futility=self.futility,
            command=command(self, results),
            verdict_command=command(self, results, preset="verdict") if sayable else None,
            created=created,
        )


def build(
    asked: Sequence[str],
    preset_name: str,
    *,
    sizes: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    rates: Mapping[str, Mapping[str, float]] | None = None,
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    tuning: Mapping[str, Any] | None = None,
    contrasts: Mapping[str, str] | None = None,
    curve: str = "",
    file: str = "",
    until: str | None = None,
    pack: str = AUTO,
    results: str | Path = "results",
) -> PlannedStudy:
    """The study that a command line asks for. Needs the text prepared: identities hash it.

    `results` is the folder of its trials: those that need a reference run name its folder.

    `rates` are factors on the learning rate, by arm and size. A placebo and a combination with cosine take those of
    their arm, a control those of the baseline. `settings` are those found for an arm, by method; its placebo and its
    combinations take them, too.

    `contrasts`, `curve` and `file` are those of PlannedStudy; `until`: one of UNTIL for a study that may stop early.

    Raises ValueError for an unknown preset, size or key and for a value out of range.
    """
    preset = presets.preset(preset_name)
    sizes = tuple(dict.fromkeys(sizes)) or preset.sizes
    seeds = tuple(dict.fromkeys(seeds)) or tuple(range(preset.seeds))
    pairs = once(split_pair(item) for item in overrides)
    planned = (with_settings(arm, settings or {}) for arm in plan(asked, preset, pairs))
    arms = tuple(with_rates(arm, rates or {}, sizes) for arm in planned)
    check_declared(arms, contrasts or {}, curve)
    planner = Planner(preset=preset, sizes=sizes, seeds=seeds, pairs=pairs, pack=pack, results=results)
    trials, references = planner.trials(arms)
    looks, futility = looks_of(len(seeds)) if until else (), until == "settled"
    more: dict[str, Any] = {"contrasts": contrasts, "curve": curve, "looks": looks}
    declared = [more | ({"futility": True} if futility else {})] if any(more.values()) else []
    short = digest([*(trial.key for trial in trials), *declared])[:8]
    return PlannedStudy(
        name=f"{slug('-'.join(asked))}-{preset_name}-{short}",
        preset=preset_name,
        asked=tuple(asked),
        arms=arms,
        sizes=sizes,
        seeds=seeds,
        overrides=tuple(overrides),
        trials=trials,
        references=references,
        pack=pack,
        tuning=tuning,
        contrasts=contrasts or {},
        curve=curve,
        file=file,
        looks=looks,
        futility=futility,
    )


def unlike(arms: Iterable[Arm]) -> list[str]:
    """The arms that train on other text, lengths or contexts than the baseline, or average their weights."""
    other = {"mixture", "sequence", "windows", "context", "average"}
    claimed = {arm.name: [claims(registry.load_class(m)) for m in Spec.parse(arm.intervention).names] for arm in arms}
    return [name for name, places in claimed.items() if any(other & place for place in places)]


def check_declared(arms: Sequence[Arm], contrasts: Mapping[str, str], curve: str) -> None:
    """ValueError for a contrast of arms that there are not, and for a curve that does not compare them."""
    names = [arm.name for arm in arms]
    for arm, against in contrasts.items():
        for name in (arm, against):
            if name not in names:
                raise ValueError("contrasts: " + unknown(name, names).replace("unknown key", "unknown arm"))
        if arm in (against, BASELINE_ARM):
            raise ValueError(f"contrasts: {arm!r} = {against!r}: allowed are two arms, the first not the baseline")
    if curve not in ("", "heldout", "training"):
        raise ValueError(f"fit.curve={curve!r}: allowed are heldout, training")
    if curve == "training" and (others := unlike(arms)):
        raise ValueError(
            f"fit.curve='training': {others[0]} trains on other text than the baseline: allowed is heldout"
        )


def with_arms(study: PlannedStudy, arms: Sequence[Arm], results: str | Path = "results") -> PlannedStudy:
    """The study of other arms at the same sizes, seeds and settings: a tuning."""
    planner = Planner(
        preset=presets.preset(study.preset),
        sizes=study.sizes,
        seeds=study.seeds,
        pairs=once(split_pair(item) for item in study.overrides),
        pack=study.pack,
        results=results,
    )
    trials, references = planner.trials(arms)
    short = digest([trial.key for trial in trials])[:8]
    name = f"{slug('-'.join(study.asked))}-rates-{study.preset}-{short}"
    return dataclasses.replace(study, name=name, arms=tuple(arms), trials=trials, references=references)


def split_pair(item: str) -> tuple[str, str]:
    """`key=value` of SET; ValueError where it is no such pair or a sweep decides the key itself."""
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise ValueError(f"SET: {item!r} is not of the form key=value, such as optim.lr=1e-3")
    if key in RESERVED:
        raise ValueError(f"SET: {key} differs between the trials of a sweep; it is decided by {RESERVED[key]}")
    return key, value


def command(study: PlannedStudy, results: str, *, preset: str | None = None) -> str:
    """The command that gives this study; with `preset`, the same question at that preset's sizes and seeds."""
    if study.file and preset is None:
        return "make sweep " + _words({"STUDY": study.file}, results)
    usual = presets.preset(study.preset)
    words = {"INTERVENTION": ",".join(study.asked), "PRESET": preset or study.preset}
    if preset is None and study.sizes != usual.sizes:
        words["SIZES"] = " ".join(study.sizes)
    if preset is None and study.seeds != tuple(range(usual.seeds)):
        words["SEEDS"] = seeds_text(study.seeds)
    if study.tuning:
        words |= {"SEARCH": str(study.tuning["points"])} if "points" in study.tuning else {"TUNE_RATE": "1"}
        words |= {"HALVING": "1"} if study.tuning.get("halving") else {}
    if study.looks:
        words["UNTIL"] = "settled" if study.futility else "decided"
    if study.pack != AUTO:
        words["PACK"] = study.pack
    if study.overrides:
        words["SET"] = " ".join(study.overrides)
    if words["PRESET"] == "laptop":
        del words["PRESET"]
    return "make sweep " + _words(words, results)


def _words(words: Mapping[str, str], results: str) -> str:
    every = {**words, **({"RESULTS": results} if results != "results" else {})}
    return " ".join(f"{key}={shlex.quote(value)}" for key, value in every.items())


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` → 0 1 2; `4 7` → 4 7; `4,` → 4 alone. Empty: none given."""
    words = text.replace(",", " ").split()
    try:
        numbers = tuple(int(word) for word in words)
    except ValueError:
        numbers = (-1,)
    single = len(numbers) == 1 and "," not in text
    if any(n < 0 for n in numbers) or (single and not 1 <= numbers[0] <= MOST_SEEDS):
        allowed = f"how many (3; at most {MOST_SEEDS}) or which ones ('0 1 2', or '4,' for seed 4 alone)"
        raise ValueError(f"SEEDS={text!r}: give {allowed}")
    return tuple(range(numbers[0])) if single else numbers


def seeds_text(seeds: Sequence[int]) -> str:
    """The inverse of `parse_seeds`."""
    if tuple(seeds) == tuple(range(len(seeds))):
        return str(len(seeds))
    return f"{seeds[0]}," if len(seeds) == 1 else " ".join(map(str, seeds))
