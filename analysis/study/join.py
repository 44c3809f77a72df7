"""Joins studies that share a baseline: their arms then stand in one table, against the same trials.

Wherever both have a baseline trial of a size and seed it must be the same trial, by its identity: the same settings,
text, numerics, torch and device. Sizes and seeds that only one of them has are taken as they are, and leave gaps in the
arms of the other, as failed trials do. Arms of one name that are not the same arm get what differs into their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from analysis.study.arm import Arm
from analysis.study.load import Study, Trial, in_order, one_environment

MOST_REASONS = 3


def join(studies: Sequence[Study]) -> Study:
    """One study of the arms of all. ValueError, with the reason, where two of them have different baselines."""
    if len(studies) < 2:
        return studies[0]
    return one_environment(in_order(reduce(_two, studies)))


def _two(a: Study, b: Study) -> Study:
    _check_baselines(a, b)
    names = _names(a, b)
    arms = {arm.name: arm for arm in a.arms}
    for arm in b.arms:
        name = names[arm.name]
        if name not in arms or (arm.role, arms[name].role) == ("arm", "control"):  # asked about in one of them
            arms[name] = replace(arm, name=name, of=names.get(arm.of or ""))
    trials = {(t.arm, t.size, t.seed): t for t in a.trials}
    for trial in (replace(t, arm=names[t.arm]) for t in b.trials):
        key = (trial.arm, trial.size, trial.seed)
        if key not in trials or not trials[key].finished:
            trials[key] = trial
    return replace(
        a,
        name=f"{a.name} + {b.name}",
        arms=tuple(arms.values()),
        sizes=tuple(dict.fromkeys((*a.sizes, *b.sizes))),
        seeds=tuple(sorted({*a.seeds, *b.seeds})),
        trials=tuple(trials.values()),
        references=(*a.references, *b.references),
        imported=tuple({found.name: found for found in (*a.imported, *b.imported)}.values()),
        preset=a.preset if a.preset == b.preset else None,
        overrides=a.overrides if a.overrides == b.overrides else (),
        exploratory=a.exploratory or b.exploratory,
        curve=a.curve if a.curve == b.curve else "heldout",  # the training loss is not comparable in one of them
        tuning=_tuning(a.tuning, b.tuning),
        futility=a.futility and b.futility,
        earlier=tuple({look.name: look for look in (*a.earlier, *b.earlier)}.values()),
        contrasts={**a.contrasts, **{names[arm]: names[against] for arm, against in b.contrasts.items()}},
        command=_both(a.command, b.command),
        verdict_command=_both(a.verdict_command, b.verdict_command),
        created=max(a.created or "", b.created or "") or None,
    )


def _check_baselines(a: Study, b: Study) -> None:
    what = f"{a.name} and {b.name} cannot be joined"
    if (a.looks, a.looks and len(a.seeds)) != (b.looks, b.looks and len(b.seeds)):
        raise ValueError(f"{what}: they stand at different looks, and their intervals differ")
    ours, theirs = _cells(a, a.baseline.name), _cells(b, b.baseline.name)
    shared = [cell for cell in ours if cell in theirs]
    if not shared:
        has = [f"sizes {', '.join(s.sizes)} and seeds {', '.join(map(str, s.seeds))}" for s in (a, b)]
        raise ValueError(f"{what}: no size and seed is in both; they have {has[0]}; {has[1]}")
    for cell in shared:
        if ours[cell].identity != theirs[cell].identity:
            why = _differences(ours[cell], theirs[cell])
            raise ValueError(f"{what}: their baselines differ at size {cell[0]}, seed {cell[1]}: {why}")


def _cells(study: Study, arm: str) -> dict[tuple[str, int], Trial]:
    return {(t.size, t.seed): t for t in study.trials if t.arm == arm}


def _differences(x: Trial, y: Trial) -> str:
    """What two trials differ in, as far as their records tell."""
    left, right = (dict(_leaves(t.config)) | dict(_leaves(t.manifest.get("ingredients") or {})) for t in (x, y))
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]
    keys = [key for key in keys if not key.startswith(("run.", "config."))] if left and right else []
    told = [f"{key} {left.get(key)} and {right.get(key)}" for key in keys[:MOST_REASONS]]
    more = f", and {len(keys) - MOST_REASONS} more" if len(keys) > MOST_REASONS else ""
    return ", ".join(told) + more if told else f"identities {x.identity} and {y.identity}"


def _leaves(found: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{inside}{key}.")
        else:
            yield inside + str(key), value


def _names(a: Study, b: Study) -> dict[str, str]:
    """What each arm of b is called in the joined study."""
    found = {b.baseline.name: a.baseline.name}
    taken = {arm.name: arm for arm in a.arms}
    for arm in b.arms:
        if arm.role == "baseline":
            continue
        name = arm.name
        if name in taken and not _same(a, taken[name], b, arm):
            settings = " ".join(f"{key}={value}" for key, value in _leaves(arm.settings))
            name = f"{arm.name} {settings}" if settings else f"{arm.name} of {b.name}"
            name = name if name not in taken else f"{arm.name} of {b.name}"
        found[arm.name] = name
    return found


def _same(a: Study, ours: Arm, b: Study, theirs: Arm) -> bool:
    """Whether two arms of one name are the same: by their trials of a size and seed, else by what they say."""
    mine, other = _cells(a, ours.name), _cells(b, theirs.name)
    shared = [cell for cell in mine if cell in other]
    if shared:
        return all(mine[cell].identity == other[cell].identity for cell in shared)
    return (ours.intervention, ours.settings, ours.rates) == (theirs.intervention, theirs.settings, theirs.rates)


def _tuning(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the tuning of both took."""
    if not (a and b) or a.get("study") == b.get("study"):
        return a or b
    added = {key: a[key] + b[key] for key in ("trials", "train_seconds") if key in a and key in b}
    return {**a, **b, **added, "study": f"{a.get('study')}, {b.get('study')}"}


def _both(a: str | None, b: str | None) -> str | None:
    """The commands of both, one after the other."""
    return f"{a} && {b}" if a and b and a != b else a or b
