"""Which arms a study asks about, and which other arms each of them is held against.

Beside the baseline these are its placebo, the baseline at other learning rates, the arm that the study declares, and,
for the arm together with cosine, cosine alone.
"""

from __future__ import annotations

from analysis.study.arm import Arm, rate_factor
from analysis.study.load import Study
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
    """Whether `both` is the arm with cosine, its settings the same."""
    same = all(both.settings.get(method) == arm.settings.get(method) for method in Spec.parse(arm.intervention).names)
    return both != arm and both.parts == arm.parts | {"cosine"} and same


def find_cosine(study: Study, arm: Arm) -> tuple[str, str] | None:
    """(arm + cosine, cosine) by name, where the study has both."""
    for both in (a for a in study.arms if adds_cosine(a, arm)):
        for cosine in (a for a in study.arms if a.parts == {"cosine"} and a != both):
            if cosine.settings.get("cosine") == both.settings.get("cosine"):
                return both.name, cosine.name
    return None
