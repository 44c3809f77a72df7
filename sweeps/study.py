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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.inference.evidence import VERDICT_SEEDS
from analysis.study.arm import Arm, rate_factor
from analysis.study.declaration import Declaration, Entry
from sweeps.packing import AUTO, packed
from zslx.config import presets
from zslx.config.fields import unknown
from zslx.config.groups import GROUPS
from zslx.config.presets import Preset
from zslx.config.run_config import Config, known_keys, once, override
from zslx.config.spec import BASELINE, Part, Spec
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.intervention.hooks import claims
from zslx.runs.identity import digest, ingredients
from zslx.slug import slug

MOST_SEEDS = 1000
BASELINE_ARM = "baseline"  # the arm that runs `none`
# What a sweep decides itself, and by what.
RESERVED = {
    "intervention": "INTERVENTION=",
    "model": "SIZES=",
    "train.seed": "SEEDS=",
}
REFERENCE = "reference"  # of SET: the run folder of the reference model, for the arms whose methods need one
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One run of a study. `key` names its folder: the identity, lengthened where SET changes what is measured.

    `packed`: it trains in a pack (packing.py), alone in it perhaps.
    """

    arm: str
    size: str
    seed: int
    config: Config
    identity: str
    key: str
    packed: bool = False

    @property
    def label(self) -> str:
        return f"{self.arm}/{self.size}/{self.seed}"

    @property
    def steps(self) -> int:
        return self.config.train.steps


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
    pack: str = AUTO  # which trials are packed: auto, off or how many together
    tuning: Mapping[str, Any] | None = None  # how the rates of the arms were tuned (tune_rate.py)

    @property
    def exploratory(self) -> bool:
        return len(self.seeds) < VERDICT_SEEDS

    @property
    def fitted_curve(self) -> str:
        """The loss curve on which L_d, t_d and r_d are compared: the training loss, as in the zero-sum learning paper;
        the held-out loss where an arm trains on other text, lengths or contexts than the baseline, or averages its
        weights."""
        methods = {method for arm in self.arms for method in Spec.parse(arm.intervention).names}
        other = {"mixture", "sequence", "windows", "context", "average"}
        return "heldout" if any(other & claims(registry.load_class(m)) for m in methods) else "training"

    def declaration(self, trials: Iterable[Entry], results: str, created: str) -> Declaration:
        """What study.json says of it, with how each of its trials stands."""
        return Declaration(
            name=self.name,
            preset=self.preset,
            arms=self.arms,
            sizes=self.sizes,
            seeds=self.seeds,
            trials=tuple(trials),
            overrides=self.overrides,
            exploratory=self.exploratory,
            curve=self.fitted_curve,
            tuning=self.tuning,
            command=command(self, results),
            verdict_command=command(self, results, preset="verdict"),
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
    tuning: Mapping[str, Any] | None = None,
    pack: str = AUTO,
) -> PlannedStudy:
    """The study that a command line asks for. Needs the text prepared: identities hash it.

    `rates` are factors on the learning rate, by arm and size. A placebo and a combination with cosine take those of
    their arm, a control those of the baseline.

    Raises ValueError for an unknown preset, size or key and for a value out of range.
    """
    preset = presets.preset(preset_name)
    sizes = tuple(dict.fromkeys(sizes)) or preset.sizes
    seeds = tuple(dict.fromkeys(seeds)) or tuple(range(preset.seeds))
    pairs = once(split_pair(item) for item in overrides)
    arms = tuple(_with_rates(arm, rates or {}, sizes) for arm in plan(asked, preset, pairs))
    trials = tuple(t for arm in arms for size in sizes for t in _trials(preset, arm, size, seeds, pairs, pack))
    short = digest([trial.key for trial in trials])[:8]
    return PlannedStudy(
        name=f"{slug('-'.join(asked))}-{preset_name}-{short}",
        preset=preset_name,
        asked=tuple(asked),
        arms=arms,
        sizes=sizes,
        seeds=seeds,
        overrides=tuple(overrides),
        trials=trials,
        pack=pack,
        tuning=tuning,
    )


def _with_rates(arm: Arm, rates: Mapping[str, Mapping[str, float]], sizes: Sequence[str]) -> Arm:
    """The arm with its factors on the learning rate. The factor of a rate control multiplies the baseline's."""
    own = rates.get(arm.name) or rates.get(arm.of or "") or rates.get(BASELINE_ARM) or {}
    factor = rate_factor(arm.name) or 1.0
    found = {size: factor * own.get(size, 1.0) for size in sizes}
    return dataclasses.replace(arm, rates={} if set(found.values()) == {1.0} else found)


def with_arms(study: PlannedStudy, arms: Sequence[Arm]) -> PlannedStudy:
    """The study of other arms at the same sizes, seeds and settings: a tuning of rates."""
    preset, pairs = presets.preset(study.preset), once(split_pair(item) for item in study.overrides)
    trials = tuple(
        t for arm in arms for size in study.sizes for t in _trials(preset, arm, size, study.seeds, pairs, study.pack)
    )
    short = digest([trial.key for trial in trials])[:8]
    name = f"{slug('-'.join(study.asked))}-rates-{study.preset}-{short}"
    return dataclasses.replace(study, name=name, arms=tuple(arms), trials=trials)


def plan(asked: Sequence[str], preset: Preset, pairs: Pairs) -> tuple[Arm, ...]:
    """The arms: the preset's pattern for each intervention asked for, the baseline first."""
    arms: dict[str, Arm] = {}
    for spec in asked:
        for pattern in (BASELINE, *preset.arms):
            made = _spec(pattern, spec)
            if made and made not in arms:
                arms[made] = _arm(made, asked, pairs)
    known = {method for arm in arms.values() for method in Spec.parse(arm.intervention).names}
    for key, _ in pairs:
        if key == REFERENCE and not any(_needs_reference(arm) for arm in arms.values()):
            raise ValueError(f"SET: {REFERENCE} is for methods that need a reference model, and none of the arms does")
        if key.partition(".")[0] not in {*GROUPS, *known, REFERENCE}:
            methods = [f"{method}.<setting>" for method in sorted(known - {BASELINE})]
            raise ValueError("SET: " + unknown(key, [*methods, *known_keys()]))
    return tuple(arms.values())


def _spec(pattern: str, spec: str) -> str | None:
    """The spec that a preset's pattern gives for an intervention; None where there is no such arm.

    `placebo:{arm}` permutes every part that declares a placebo. `{arm}+cosine` is left out where the arm has cosine.
    """
    if "{arm}" not in pattern:
        return pattern
    if spec == BASELINE:
        return None
    if rate_factor(spec):
        return spec if pattern == "{arm}" else None
    if pattern == "placebo:{arm}":
        parts = Spec.parse(spec).parts
        made = [Part(p.name, registry.load_class(p.name).placebo is not None) for p in parts]
        return None if any(p.placebo for p in parts) or not any(p.placebo for p in made) else str(Spec(tuple(made)))
    formed = pattern.format(arm=spec)
    if formed != spec:
        names = Spec.parse(formed).names
        places = [place for name in names for place in claims(registry.load_class(name))]
        if len(set(names)) < len(names) or len(set(places)) < len(places):
            return None
    return formed


def _arm(spec: str, asked: Sequence[str], pairs: Pairs) -> Arm:
    if rate_factor(spec):
        return Arm(name=spec, intervention=BASELINE, role="control", has_placebo=False)
    settings: dict[str, dict[str, str]] = {}
    for key, value in pairs:
        head, _, name = key.partition(".")
        if head not in GROUPS and head in Spec.parse(spec).names:
            settings.setdefault(head, {})[name] = value
    methods = registry.load_spec(spec, settings)  # refuses a setting that the method has not, or a value out of range
    if spec == BASELINE:
        return Arm(name=BASELINE_ARM, intervention=spec, role="baseline", has_placebo=False)
    plain = str(Spec.parse(spec).plain)
    role, of = "control", None
    if plain != spec and plain in asked:
        role, of = "placebo", plain
    elif spec in asked:
        role = "arm"
    else:
        of = next((one for one in asked if spec.startswith(f"{one}+")), None)
    has_placebo = any(method.placebo is not None for method in methods)
    return Arm(name=spec, intervention=spec, role=role, of=of, settings=settings, has_placebo=has_placebo)


def _needs_reference(arm: Arm) -> Intervention | None:
    """The first method of the arm that needs a reference run."""
    methods = registry.load_spec(arm.intervention, arm.settings)
    return next((m for m in methods if m.needs & {"reference_losses", "reference_actions"}), None)


def _reference(arm: Arm, pairs: Pairs) -> str:
    """The folder of the arm's reference run, absolute, since trials run elsewhere; empty where it needs none."""
    method, given = _needs_reference(arm), dict(pairs).get(REFERENCE, "")
    if method and not given:
        what, more = "model", ""
        if "reference_actions" in method.needs:  # a placebo that replays what its method did
            plain = method.name.rpartition(":")[2]
            what, more = f"run of {plain}", f"intervention={plain} "
        raise ValueError(
            f'{method.name} needs a reference {what}: SET="reference=RUN_FOLDER" of a finished run, such as that of '
            f"zslx train laptop model=0.4M train.seed=1000 {more}--out runs/reference"
        )
    return str(Path(given).resolve()) if method else ""


def _trials(
    preset: Preset, arm: Arm, size: str, seeds: Sequence[int], pairs: Pairs, pack: str
) -> Iterable[PlannedTrial]:
    """The trials of one arm at one size. Seeds differ in train.seed alone, so the rest is hashed once."""
    config = dataclasses.replace(
        preset.for_size(size),
        intervention=arm.intervention,
        settings=arm.settings,
        reference=_reference(arm, pairs),
    )
    config = override(config, [(key, value) for key, value in pairs if key.partition(".")[0] in GROUPS])
    if factor := arm.rates.get(size):
        lr = float(f"{config.optim.lr * factor:.3g}")
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr))
    together = packed(config, pack)
    parts = ingredients(config, packed=together)
    usual = config.instruments == preset.config.instruments
    measured = "" if usual else digest(config.to_dict()["instruments"])[:8]
    for seed in seeds:
        parts["config"]["train"]["seed"] = seed
        name = digest(parts)
        train = dataclasses.replace(config.train, seed=seed)
        yield PlannedTrial(
            arm=arm.name,
            size=size,
            seed=seed,
            config=dataclasses.replace(config, train=train),
            identity=name,
            key=name + measured,
            packed=together,
        )


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
    usual = presets.preset(study.preset)
    words = {"INTERVENTION": ",".join(study.asked), "PRESET": preset or study.preset}
    if preset is None and study.sizes != usual.sizes:
        words["SIZES"] = " ".join(study.sizes)
    if preset is None and study.seeds != tuple(range(usual.seeds)):
        words["SEEDS"] = seeds_text(study.seeds)
    if study.tuning:
        words["TUNE_RATE"] = "1"
    if study.pack != AUTO:
        words["PACK"] = study.pack
    if study.overrides:
        words["SET"] = " ".join(study.overrides)
    if results != "results":
        words["RESULTS"] = results
    if words["PRESET"] == "laptop":
        del words["PRESET"]
    return "make sweep " + " ".join(f"{key}={shlex.quote(value)}" for key, value in words.items())


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
