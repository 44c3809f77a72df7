"""What the word about an arm rests on: paired contrasts of log held-out loss at T, without any fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.inference.contrasts import Contrast, pooled, pooled_sizes
from analysis.inference.controls import find_placebo, rate_controls
from analysis.inference.looks import futile
from analysis.study.arm import Arm
from analysis.study.load import Study
from analysis.study.measures import Measures


@dataclass(frozen=True)
class LossContrasts:
    """What the word about an arm rests on: log held-out loss at T, paired.

    `differences` (S, n) to the baseline, or what is declared in its place, to the placebo and to the baseline at other
    learning rates, by their names.
    """

    primary: Contrast | None
    placebo: Contrast | None
    rates: dict[str, Contrast | None]
    differences: dict[str, np.ndarray]

    def futile(self, study: Study) -> bool:
        """Whether the rest of the seeds would hardly give an answer."""
        return futile(self.primary, [self.placebo, *self.rates.values()], study.looks, len(study.seeds))

    def left_out(self, study: Study) -> dict[str, list[str]]:
        """By the names in `differences`: the sizes with too few pairs to count in the average over sizes."""
        return {
            name: [size for size, counts in zip(study.sizes, pooled_sizes(d), strict=True) if not counts]
            for name, d in self.differences.items()
        }


def loss_contrasts(measures: Measures, arm: Arm, against: str, confidence: float) -> LossContrasts:
    """An arm against another, against its placebo, and against the baseline at other learning rates."""
    study, loss = measures.study, measures.log_loss
    differences = {arm.name: measures.paired(arm.name, against, loss)}
    placebo = find_placebo(study, arm)
    rates = {f"{factor:g}×": control.name for factor, control in rate_controls(study) if control != arm}
    for control in [*([placebo.name] if placebo else []), *rates.values()]:
        differences[control] = measures.paired(arm.name, control, loss)
    return LossContrasts(
        primary=pooled(differences[arm.name], confidence),
        placebo=pooled(differences[placebo.name], confidence) if placebo else None,
        rates={factor: pooled(differences[control], confidence) for factor, control in rates.items()},
        differences=differences,
    )
