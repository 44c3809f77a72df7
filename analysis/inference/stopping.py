"""Where a study that is judged at looks stands: what is decided, what is futile, and whether it may stop (looks.py)."""

from __future__ import annotations

from analysis.inference import evidence
from analysis.inference.controls import asked_about, declared
from analysis.inference.looks import confidence_at
from analysis.inference.loss_contrasts import loss_contrasts
from analysis.inference.rows import Looks
from analysis.study.measures import Measures

FUTILE_WORD = f"{evidence.NOTHING}, futile"


def looks(measures: Measures) -> Looks | None:
    """At which look the study stands, and whether it has an answer there; None where none were planned."""
    study = measures.study
    if not study.looks:
        return None
    words = decided(measures)
    found: Looks = {
        "after": list(study.looks),
        "seeds": len(study.seeds),
        "confidence": confidence_at(study.looks, len(study.seeds)),
        "decided": bool(words) and all(words.values()),
    }
    if study.futility:
        found["futile"] = [name for name, word in words.items() if word == FUTILE_WORD]
    return found


def decided(measures: Measures) -> dict[str, str | None]:
    """The word about each arm that is asked about, where the study has one at the look at which it stands; else None.
    FUTILE_WORD where the rest of the seeds would hardly give one, in a study that may stop for that.

    Needs no fit: whether a gain also mitigates the deceleration is no reason to go on.
    """
    study, found = measures.study, {}
    confidence = confidence_at(study.looks, len(study.seeds))
    asked = [(arm, study.baseline.name) for arm in study.arms if asked_about(study, arm)]
    for arm, against in asked + declared(study):
        contrasts = loss_contrasts(measures, arm, against, confidence)
        verdict = evidence.judge(
            contrasts.primary,
            contrasts.placebo,
            {},
            {},
            rates=contrasts.rates,
            has_placebo=arm.has_placebo,
            complete=not any(contrasts.left_out(study).values()),
            against=against,
        )
        name = arm.name if against == study.baseline.name else f"{arm.name} against {against}"
        if verdict.word != evidence.NOTHING:
            found[name] = None if verdict.exploratory else verdict.word
        else:
            stops = study.futility and not verdict.exploratory and contrasts.futile(study)
            found[name] = FUTILE_WORD if stops else None
    return found
