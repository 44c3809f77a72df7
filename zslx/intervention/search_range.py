"""Which settings of an intervention a search tries, and over what range: from what `setting(...)` declares of them.

    choices, or a bool                  each of them
    0 < default, high > SPAN × default  log scale, from default / SPAN to default × SPAN
    .9 ≤ default < 1, high ≤ 1          a share near 1, such as the decay of an average: 1 − value in the same way
    low and high                        evenly from low to high

Never beyond the declared bounds, which say what is valid and may be far wider than what is worth a trial. Without
bounds, and with a default of 0 and a `high` above SPAN, there is no scale to search on: such a setting stays as it is.
So do those in FIXED, which say what is compared and what it costs to measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPAN = 16.0
NEAR_ONE = 0.9
FIXED = ("groups", "num_groups", "proxy", "scale", "cadence", "samples")


@dataclass(frozen=True, kw_only=True)
class SearchRange:
    """`choices`, or numbers from `low` to `high`, on a log scale where `log`. `start`: the default, as one of these.

    `complement`: what is searched is 1 − the setting.
    """

    start: Any
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    complement: bool = False

    def setting(self, found: Any) -> Any:
        """The value of the setting for a value in the range, floats to three digits."""
        if self.choices or self.whole:
            return found
        value = float(f"{found:.3g}")
        return round(1 - value, 12) if self.complement else value

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        ends = sorted(map(self.setting, (self.low, self.high)))
        return f"{ends[0]:g} .. {ends[1]:g}" + (", log scale" if self.log else "") + " of 1 − it" * self.complement


def search_range(row: Mapping[str, Any]) -> SearchRange | None:
    """The range of one setting, a row of `Intervention.card()["settings"]`; None where it is not searched."""
    default, kind = row["default"], row.get("type")
    if row["name"] in FIXED:
        return None
    choices = (False, True) if kind == "bool" else tuple(row.get("choices") or ())
    if choices:
        return SearchRange(choices=choices, start=default)
    low, high = row.get("low"), row.get("high")
    if kind not in ("int", "float") or low is None or high is None:
        return None
    if kind == "float" and NEAR_ONE <= default < 1 and high <= 1:
        rest = 1 - default
        ends = max(1 - high, rest / SPAN), min(1 - low, rest * SPAN)
        return SearchRange(low=ends[0], high=ends[1], log=True, complement=True, start=rest)
    if default == 0 and high > SPAN:
        return None
    if default <= 0 or not (row.get("log") or (low >= 0 and high > SPAN * default)):
        return SearchRange(low=low, high=high, whole=kind == "int", start=default)
    least, most = max(low, default / SPAN), min(high, default * SPAN)
    if kind == "int":
        least, most = max(1, round(least)), round(most)
    return SearchRange(low=least, high=most, log=True, whole=kind == "int", start=default)
