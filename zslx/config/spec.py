"""A spec names what a run trains with: interventions joined by `+`, each possibly as its placebo.

    pcgrad                  one intervention
    pcgrad+cosine           both at once, their hooks called in this order
    placebo:pcgrad+cosine   the placebo of pcgrad, with cosine

White space around names does not count. `none` is the baseline, and a part of no other spec: who writes none+a more
likely means two arms than a spec that does nothing but a. Whether the names exist is for the registry to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PLACEBO = "placebo:"
BASELINE = "none"


@dataclass(frozen=True)
class Part:
    """One name of a spec, and whether its placebo is meant."""

    name: str
    placebo: bool = False

    def __str__(self) -> str:
        return PLACEBO * self.placebo + self.name


@dataclass(frozen=True)
class Spec:
    """The parts of a spec; `str` gives its one spelling, which is part of a trial's identity."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: Any) -> Spec:
        """The spec that a text spells. ValueError where a part is empty or `none` does not stand alone."""
        if not isinstance(text, str):
            raise ValueError(f"intervention {text!r}: must be a text, such as 'pcgrad' or 'pcgrad+cosine'")
        parts = []
        for piece in text.split("+"):
            tidy = ":".join(word.strip() for word in piece.split(":"))
            parts.append(Part(tidy.removeprefix(PLACEBO), tidy.startswith(PLACEBO)))
            if not parts[-1].name:
                raise ValueError(
                    f"intervention {text!r}: its part {str(parts[-1])!r} is empty; allowed are NAME and placebo:NAME, "
                    "joined by +"
                )
        if len(parts) > 1 and any(part.name == BASELINE for part in parts):
            raise ValueError(f"intervention {text!r}: {BASELINE!r} is the baseline and stands alone; leave it out")
        return cls(tuple(parts))

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))

    @property
    def names(self) -> list[str]:
        """The names of the interventions, without `placebo:`."""
        return [part.name for part in self.parts]

    @property
    def plain(self) -> Spec:
        """The spec without its placebos."""
        return Spec(tuple(Part(part.name) for part in self.parts))


def one_spelling(text: str) -> str:
    """The spelling of a spec that stands in configurations and identities."""
    return str(Spec.parse(text))
