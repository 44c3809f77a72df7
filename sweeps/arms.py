"""The arms of a study: the preset's pattern for each intervention that is asked for, the baseline first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.study.arm import UNTUNED, Arm, rate_factor, sets_rate
from sweeps.grids import Pairs, Point, points, refuse_grids_of_the_configuration
from zslx.config.fields import unknown
from zslx.config.groups import GROUPS
from zslx.config.presets import Preset
from zslx.config.run_config import known_keys
from zslx.config.spec import BASELINE, Part, Spec
from zslx.intervention import registry
from zslx.intervention.hooks import claims

BASELINE_ARM = "baseline"  # the arm that runs `none`
REFERENCE = "reference"  # of SET: the folder of a finished run, for the arms whose methods need one


def plan(asked: Sequence[str], preset: Preset, pairs: Pairs) -> tuple[Arm, ...]:
    """The arms: the preset's pattern for each intervention asked for, the baseline first.

    An intervention with a grid of settings has an arm of each of its points (grids.py).
    """
    refuse_grids_of_the_configuration(pairs)
    arms: dict[str, Arm] = {}
    for spec in asked:
        for pattern in (BASELINE, *preset.arms):
            if made := _spec(pattern, spec):
                for point in points(made, pairs):
                    arms.setdefault(point.label(made), _arm(made, asked, point))
    known = {method for arm in arms.values() for method in Spec.parse(arm.intervention).names}
    for key, _ in pairs:
        if key == REFERENCE and not any(needed_by(arm) for arm in arms.values()):
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
    if sets_rate(spec):
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


def _arm(spec: str, asked: Sequence[str], point: Point) -> Arm:
    if sets_rate(spec):
        return Arm(name=spec, intervention=BASELINE, role="control", has_placebo=False)
    methods = registry.load_spec(spec, point.settings)  # refuses a setting that there is not, or a value out of range
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
    return Arm(
        name=point.label(spec),
        intervention=spec,
        role=role,
        of=of and point.label(of),
        settings=point.settings,
        has_placebo=any(method.placebo is not None for method in methods),
    )


def needed_by(arm: Arm) -> dict[str, str]:
    """What the arm needs of another run (reference_losses, reference_actions), and the method that needs it."""
    methods = registry.load_spec(arm.intervention, arm.settings)
    return {need: m.name for need in ("reference_losses", "reference_actions") for m in methods if need in m.needs}


def with_rates(arm: Arm, rates: Mapping[str, Mapping[str, float]], sizes: Sequence[str]) -> Arm:
    """The arm with its factors on the learning rate. The factor of a rate control multiplies that of the baseline."""
    if arm.name == UNTUNED:
        return arm
    own = rates.get(arm.name) or rates.get(arm.of or "") or rates.get(BASELINE_ARM) or {}
    factor = rate_factor(arm.name) or 1.0
    found = {size: factor * own.get(size, 1.0) for size in sizes}
    return dataclasses.replace(arm, rates={} if set(found.values()) == {1.0} else found)


def with_settings(arm: Arm, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Arm:
    """The arm with the settings found for it, by method, or for the arm that it is a placebo or a control of."""
    own = found.get(arm.name) or found.get(arm.of or "") or {}
    merged = {m: {**arm.settings.get(m, {}), **own.get(m, {})} for m in {**arm.settings, **own}}
    return dataclasses.replace(arm, settings=merged) if own else arm
