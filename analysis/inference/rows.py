"""The shape of a comparison: the rows that compare.py and its neighbours make, and table, report and `--json` read.

All are plain JSON objects. Losses are in nats per token, differences of log loss as they are (−0.01 is 1 % lower),
times in seconds. What could not be computed is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict


def finite(value: float) -> float | None:
    """The number, or null where there is none."""
    return float(value) if math.isfinite(value) else None


class Interval(TypedDict):
    """A mean with its 95 % interval over n seeds. `identified`, of a break: whether the data place it."""

    mean: float
    low: float | None
    high: float | None
    n: int
    identified: NotRequired[bool]


class Difference(TypedDict):
    """A paired difference with its 95 % interval (but see Looks) and two-sided p; what such a study could have seen."""

    estimate: float
    low: float | None
    high: float | None
    se: float | None
    p: float | None
    seeds: int
    pairs: int
    smallest_effect: float | None


class Part(TypedDict):
    """Held-out loss at T of a part of the tokens; the paired difference to the baseline is of its logarithm."""

    loss: Interval | None
    difference: Difference | None


class DomainChanges(TypedDict):
    """The changes of held-out losses from step `start` to `end` = 2 `start`, by domain (domain_interference.py).

    `names` are the domains in the order of `between`, whose entries are means over `seeds`; `shift` is in nats per
    token; `difference` is that of `between_share` to the baseline.
    """

    start: int
    end: int
    seeds: int
    names: list[str]
    between: list[list[float | None]]
    shift: dict[str, Interval | None]
    between_share: Interval | None
    difference: Difference | None


class HeldOutParts(TypedDict):
    """An arm at a size by domain and by frequency of the target ("0": the most frequent quarter of the text)."""

    by_domain: dict[str, Part]
    by_frequency: dict[str, Part]
    last_doubling: DomainChanges | None


# L_d, t_d, r_d and L̂_T of the pooled fit of an arm at a size; None without a fit. `break`: status, reason, cut, ...
PooledBreak = TypedDict(
    "PooledBreak",
    {
        "L_d": Interval | None,
        "t_d": Interval | None,
        "r_d": Interval | None,
        "L_T_hat": Interval | None,
        "break": dict[str, Any] | None,
    },
)


class Cell(PooledBreak):
    """What an arm measures at a size. L_d to L_T_hat are those of the declared curve; `fits` has both curves'."""

    arm: str
    size: str
    finished: int
    heldout_loss: Interval | None
    tail_slope: Interval | None
    break_status: dict[str, int]
    fits: dict[str, PooledBreak]
    difference: Difference | None
    cost: Interval | None
    step_seconds: Interval | None
    instruments: dict[str, Interval | None]
    held_out: HeldOutParts


class Size(TypedDict):
    """T, tokens of a baseline step, and parameters (non_embedding, embedding, total) of a size."""

    size: str
    T: float | None
    tokens_per_step: float | None
    parameters: dict[str, int] | None


class ArmComparison(TypedDict):
    """An arm against the baseline, or against what the study declares: the word that the rule allows, and everything
    that it rests on."""

    arm: str
    role: str
    against: str
    word: str
    reasons: list[str]
    exploratory: bool
    smallest_effect: float | None
    beyond_lr_decay: bool | None
    primary: Difference | None
    by_size: dict[str, Difference | None]
    sizes_left_out: dict[str, list[str]]
    sign_flip: dict[str, Any] | None
    across_sizes: dict[str, Any] | None
    rates: dict[str, Difference | None]
    placebo: dict[str, Any] | None
    has_placebo: bool
    beyond_cosine: dict[str, Any] | None
    secondary: dict[str, dict[str, Any]]
    deceleration: dict[str, dict[str, Any]]
    cut_signs: dict[str, list[float | None]]
    seeds_needed: dict[str, int | None] | None
    equal_compute: dict[str, Any] | None
    scale_equivalent_gain: dict[str, Any]
    mechanism: list[dict[str, Any]]
    diverged: dict[str, int]


class Looks(TypedDict):
    """After how many seeds a study is judged, at how many it stands, and whether it is decided there.

    `futile`, in a study that may stop for it: the arms for which the rest of the seeds would hardly give an answer.
    They count as decided.

    `confidence`: of the interval of each paired difference, so that they cover with 95 % over all looks together."""

    after: list[int]
    seeds: int
    confidence: float
    decided: bool
    futile: NotRequired[list[str]]


class Answer(TypedDict):
    """The answer about one arm, as a sentence and as the word behind it."""

    arm: str
    against: str
    word: str
    exploratory: bool
    beyond_lr_decay: bool | None
    sentence: str
    smallest_effect: float | None
    reasons: list[str]
    verdict_command: str | None


class ImportedRow(TypedDict):
    """A curve of somebody else's run: its own fit, with intervals of the fit, and no contrast with any arm."""

    arm: str
    source: str
    word: str
    sentence: str
    points: int
    T: float
    L_d: Interval | None
    t_d: Interval | None
    r_d: Interval | None
    tail_slope: Interval | None
    status: str
    reason: str


class Failure(TypedDict):
    """A trial that is in none of the numbers."""

    arm: str
    size: str
    seed: int
    status: str
    error: str


class Comparison(TypedDict):
    """Everything that the records of one study say."""

    study: str
    preset: str | None
    created: str | None
    command: str | None
    verdict_command: str | None
    exploratory: bool
    answers: list[Answer]
    looks: Looks | None
    sizes: list[Size]
    seeds: list[int]
    arms: list[dict[str, Any]]
    protocol: dict[str, Any]
    tuning: Mapping[str, Any] | None
    cells: Sequence[Cell]
    contrasts: list[ArmComparison]
    declared_contrasts: list[ArmComparison]
    scale_parts: list[dict[str, Any]]
    trends: dict[str, Any]
    failures: list[Failure]
    trials: dict[str, int]
    provenance: dict[str, Any]
    rule: str
    imported: NotRequired[list[ImportedRow]]  # only where there are such curves
    earlier: NotRequired[list[dict[str, Any]]]  # studies that looked at the same arms before, where there are some
