"""Whether the trials of a study are what study.json says of its arms and sizes, by what their identities hashed.

    within an arm and size    all that was hashed is the same, but for the seed and the reference run
    against the baseline      model, data, train and optim of a size are the same, but for the seed and the rate, which
                              has the arm's factor
    a placebo                 is the placebo form of the arm that it belongs to, with its rate, settings and sources; a
                              control that adds to an arm has its sources
    settings                  those that two arms declare alike of a method were hashed alike
    a size                    one that zslx names has the model of that name, but for what SET changed of it

What was hashed is data of anybody: that these values were used follows from training again alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.archive.identities import GROUPS
from analysis.study.arm import UNTUNED, Arm, rate_factor, sets_rate
from analysis.study.declaration import Declaration, Entry
from zslx.config.sizes import SIZES, model_preset
from zslx.config.spec import BASELINE, PLACEBO, Spec
from zslx.runs.digest import LATER

ROUNDING = 0.01  # of a ratio of two rates, each written with three digits

Parts = Mapping[str, Any]  # what an identity hashed
Trained = Sequence[tuple[Entry, Parts]]  # the trials of arms, whose identities follow


def arm_faults(declared: Declaration, trained: Trained) -> Iterator[str]:
    """What is wrong, a line each. ValueError where study.json has not one baseline."""
    if (baselines := sum(arm.role == "baseline" for arm in declared.arms)) != 1:
        raise ValueError(f"study.json: needs exactly one arm with the role baseline, has {baselines}")
    for arm in declared.arms:
        yield from (f"{arm.name}: {fault}" for fault in _declaration(arm, declared))
    first: dict[tuple[str, str], tuple[Entry, Parts]] = {}
    for entry, parts in trained:
        key = entry.arm, entry.size
        if key not in first:
            first[key] = entry, parts
        elif what := _difference(_without_seed(first[key][1]), _without_seed(parts)):
            yield f"{entry.label}: differs from {first[key][0].label} in what was hashed: {what}"
    arms = {arm.name: arm for arm in declared.arms}
    yield from _same_settings(arms, [*first.values()])
    for (name, size), (entry, parts) in first.items():
        yield from (f"{name}/{size}: {fault}" for fault in _model(entry, parts, declared.overrides))
        yield from (f"{name}/{size}: {fault}" for fault in _against_baseline(declared, arms[name], size, first))
        of = first.get((arms[name].of or "", size))
        shared = _shared if arms[name].role == "placebo" else _sources
        if of and (what := _difference(shared(of[1]), shared(parts), both=False)):
            yield f"{name}/{size}: differs from {arms[name].of} in what was hashed: {what}"


def _declaration(arm: Arm, declared: Declaration) -> Iterator[str]:
    """What is wrong with an arm by itself."""
    base = next(other for other in declared.arms if other.role == "baseline")
    spec = Spec.parse(arm.intervention)
    if str(spec) == BASELINE:
        named = arm == base or sets_rate(arm.name) or arm.name.startswith(f"{base.name} ")
    else:
        named = arm != base and f"{arm.name} ".startswith((f"{spec} ", f"{arm.intervention} "))
    if not named:
        yield f"a trial of {arm.intervention} with the role {arm.role} has another name"
    if arm.name == UNTUNED and arm.rates:
        yield "has a factor on the rate"
    if arm.role == "placebo" and not arm.of:
        yield "a placebo of no arm"
    if not arm.of:
        return
    of = next((other for other in declared.arms if other.name == arm.of), None)
    if of is None:
        yield f"belongs to {arm.of}, which is no arm"
    elif arm.role == "placebo" and not (spec.plain != spec and str(spec.plain) == str(Spec.parse(of.intervention))):
        yield f"{arm.intervention} is no placebo of {of.intervention}"
    elif arm.role != "placebo" and not of.parts < arm.parts:
        yield f"{arm.intervention} does not add to {of.intervention}"


def _without_seed(parts: Parts) -> dict[str, Any]:
    config = parts["config"]
    train = {key: value for key, value in config["train"].items() if key != "seed"}
    return {**parts, "config": {**config, "train": train, "reference": ""}}


def _shared(parts: Parts) -> dict[str, Any]:
    """What a placebo has as its arm has it."""
    config = parts["config"]
    settings = {name.removeprefix(PLACEBO): of for name, of in config["settings"].items()}
    return {"rate": config["optim"].get("lr"), "settings": settings, **_sources(parts)}


def _sources(parts: Parts) -> dict[str, Any]:
    """What a control that adds to an arm has of it; a tuning chooses its rate and settings for itself."""
    return {"sources": parts.get("sources") or {}}


def _difference(a: Parts, b: Parts, place: str = "", *, both: bool = True) -> str:
    """The first place at which two objects differ, and both values; empty where they are equal. Unless `both`, b may
    have more than a."""
    for key in [*a, *(key for key in b if both and key not in a)]:
        ours, theirs, inside = a.get(key), b.get(key), f"{place}{key}"
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if found := _difference(ours, theirs, f"{inside}.", both=both):
                return found
        elif ours != theirs or (key in a) != (key in b):
            return f"{inside} {str(ours)[:60]} and {str(theirs)[:60]}"
    return ""


def _model(entry: Entry, parts: Parts, overrides: Sequence[str]) -> Iterator[str]:
    if entry.size not in SIZES:
        return
    changed = {item.partition("=")[0] for item in overrides}
    meant = dataclasses.asdict(model_preset(entry.size))
    found = parts["config"]["model"]
    for key in dict.fromkeys([*meant, *found]):
        free = key == "vocab_size" or f"model.{key}" in changed or (key in LATER["model"] and key not in found)
        if not free and found.get(key) != meant.get(key):
            yield f"the size {entry.size} has model.{key} {meant.get(key)}, and {str(found.get(key))[:60]} was hashed"


def _against_baseline(
    declared: Declaration, arm: Arm, size: str, first: Mapping[tuple[str, str], tuple[Entry, Parts]]
) -> Iterator[str]:
    """What an arm has at a size that the baseline has not, or the first arm where the baseline has no trial."""
    ordered = sorted(declared.arms, key=lambda other: other.role != "baseline")
    other = next(other for other in ordered if (other.name, size) in first)
    ours, theirs = (_without_seed(first[of.name, size][1])["config"] for of in (arm, other))
    mine, its = ({group: dict(config[group]) for group in GROUPS} for config in (ours, theirs))
    rate, base = (float(of["optim"].pop("lr", math.nan)) for of in (mine, its))
    if what := _difference(mine, its):
        yield f"differs from {other.name} in what was hashed: {what}"
    factor = _factor(arm, ordered[0], size)
    times = factor / _factor(other, ordered[0], size)
    if rate != base * times and not math.isclose(rate / (base or math.nan), times, rel_tol=ROUNDING):
        yield f"its rate should be {times:.3g} times that of {other.name}, {base:g}, and {rate:g} was hashed"
    given = arm.rates.get(size)
    if given and not math.isclose(given, factor, rel_tol=ROUNDING):
        yield f"study.json says {given:g} times the rate, and its name {factor:g}"


def _factor(arm: Arm, baseline: Arm, size: str) -> float:
    """The factor on the learning rate before any tuning; that of `rate:0.5` multiplies the baseline's."""
    named = rate_factor(arm.name)
    return named * (baseline.rates.get(size) or 1.0) if named else arm.rates.get(size) or 1.0


def _same_settings(arms: Mapping[str, Arm], trained: Trained) -> Iterator[str]:
    """Which arms declare the same of a method, and have other settings of it in their identities."""
    known: dict[tuple[str, str], tuple[str, Any]] = {}
    for entry, parts in trained:
        for name, hashed in parts["config"]["settings"].items():
            method = name.removeprefix(PLACEBO)
            key = method, json.dumps(arms[entry.arm].settings.get(method) or {}, sort_keys=True)
            other, meant = known.setdefault(key, (entry.arm, hashed))
            if what := _difference(meant, hashed, f"{method}."):
                yield f"{entry.arm}/{entry.size}: differs from {other} in settings that it does not declare: {what}"
