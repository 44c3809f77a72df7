"""Which arms a study asks about, and which other arms each of them is held against.

Beside the baseline these are its placebo, the baseline at other learning rates, the arm that the study declares, and,
for the arm together with cosine, cosine alone.
"""

from __future__ import annotations

from analysis.inference.contrasts import Contrast
from analysis.study.arm import Arm, rate_factor
from analysis.study.load import Study
from analysis.study.tuning import tuned_arms
from zslx.config.spec import Spec


def asked_about(study: Study, arm: Arm) -> bool:
    """Whether the study's question is about this arm: not where it only adds cosine to another one."""
    return arm.role == "arm" and not any(adds_cosine(arm, other) for other in study.arms if other.role == "arm")


def declared(study: Study) -> list[tuple[Arm, str]]:
    """The contrasts that the study declares beside those to the baseline."""
    return [(arm, study.contrasts[arm.name]) for arm in study.arms if arm.name in study.contrasts]


def find_placebo(study: Study, arm: Arm) -> Arm | None:
    """The placebo of this arm, where the study has it."""
    return next((a for a in study.arms if a.role == "placebo" and a.of == arm.name), None)


def rate_controls(study: Study) -> list[tuple[float, Arm]]:
    """(factor, arm) of the baseline at other learning rates."""
    factors = [(rate_factor(a.name), a) for a in study.arms]
    return [(factor, arm) for factor, arm in factors if factor is not None]


def adds_cosine(both: Arm, arm: Arm) -> bool:
    """Whether `both` is the arm with cosine, its settings the same or searched for themselves."""
    same = all(both.settings.get(method) == arm.settings.get(method) for method in Spec.parse(arm.intervention).names)
    return both != arm and both.parts == arm.parts | {"cosine"} and (same or both.of == arm.name)


def find_cosine(study: Study, arm: Arm) -> tuple[str, str] | None:
    """(arm + cosine, cosine) by name, where the study has both: with the same settings of cosine, unless a search has
    chosen those of each."""
    searched = "arms" in (study.tuning or {})
    for both in (a for a in study.arms if adds_cosine(a, arm)):
        for cosine in (a for a in study.arms if a.parts == {"cosine"} and a != both):
            if searched or cosine.settings.get("cosine") == both.settings.get("cosine"):
                return both.name, cosine.name
    return None


def unasked(study: Study, beyond: Contrast | None, cosine: tuple[str, str], primary: Contrast | None) -> str | None:
    """Why (arm + cosine) against cosine cannot say whether the arm acts beyond LR decay; None where it can.

    Cosine is best at several times the rate that is best without it. At a rate that suits neither, an arm that only
    acts like a higher rate would pass.
    """
    if missing := [name for name in cosine if name not in tuned_arms(study.tuning)]:
        return f"the rate of {' and of '.join(missing)} was not tuned"
    if beyond is None or primary is None or beyond.pairs < primary.pairs:
        return f"{cosine[0]} and {cosine[1]} have fewer pairs than the arm and the baseline"
    return None
