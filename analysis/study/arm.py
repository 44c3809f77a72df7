"""An arm of a study, as a sweep plans it, study.json keeps it, and a comparison reads it. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zslx.config.spec import BASELINE, Spec

RATE = "rate:"  # of an arm that is the baseline at another learning rate
UNTUNED = f"{RATE}untuned"  # the baseline at its rate before any tuning


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One intervention with fixed settings.

    role          baseline, arm, control or placebo
    of            the arm that a placebo or a control belongs to
    has_placebo   whether a placebo of it exists at all: extra losses, optimizers and schedules have none
    rates         factors on the learning rate by size; 1 where none is given
    """

    name: str
    intervention: str
    role: str
    of: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    has_placebo: bool = True
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> frozenset[str]:
        """`pcgrad+cosine` → {pcgrad, cosine}."""
        return frozenset(map(str, Spec.parse(self.intervention).parts)) - {BASELINE}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> Arm:
        """The inverse of `to_dict`; keys that files of earlier versions lack have their defaults."""
        return Arm(
            name=str(entry["name"]),
            intervention=str(entry["intervention"]),
            role=str(entry["role"]),
            of=entry.get("of"),
            settings=entry.get("settings") or {},
            has_placebo=bool(entry.get("has_placebo", True)),
            rates=entry.get("rates") or {},
        )


def sets_rate(spec: str) -> bool:
    """Whether a spec is the baseline at another learning rate: `rate:0.5`, `rate:untuned`."""
    return spec == UNTUNED or rate_factor(spec) is not None


def rate_factor(spec: str) -> float | None:
    """The factor of a rate control (`rate:0.5`: the baseline at half its learning rate); None for other specs."""
    if not spec.startswith(RATE) or spec == UNTUNED:
        return None
    try:
        factor = float(spec.removeprefix(RATE))
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise ValueError(
            f"{spec!r}: {RATE} takes a factor above 0 on the baseline's learning rate, as in {RATE}0.5, or `untuned`"
        )
    return factor
