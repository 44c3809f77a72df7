"""Numbers and names as text: one way of writing each kind, in tables, sentences and figures.

A missing value is `–`, a minus sign is `−`; differences of log loss become per cent of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zslx.printable import printable as safe

MISSING = "–"
NAME_WIDTH = 40
MOST_LOG = math.log(1e6)  # of a difference of logarithms that is shown


def printable(name: str, width: int = NAME_WIDTH) -> str:
    """A name as one short line that cannot move the cursor or change colours."""
    return safe(name, width)


def minus(text: str) -> str:
    return text.replace("-", "−")


def percent(share: float) -> str:
    """Two significant digits, never in powers of ten: `0.41 %`."""
    value = 100 * share
    if value == 0:
        return "0 %"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f} %"


def change(log_difference: float) -> str:
    value = math.expm1(log_difference)
    return f"{percent(abs(value))} {'lower' if value < 0 else 'higher'}" if value else "unchanged"


def signed(log_difference: float) -> str:
    return f"{100 * math.expm1(log_difference):+.2g} %".replace("-", "−")


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def plus_minus(found: Mapping[str, Any] | None, digits: int, unit: str = "") -> str:
    """`3.4120 ± 0.0140`; without interval the mean alone."""
    if not found:
        return MISSING
    half = "" if found["low"] is None else f" ± {(found['high'] - found['low']) / 2:.{digits}f}"
    return minus(f"{found['mean']:.{digits}f}{half}{unit and ' ' + unit}")


def ranged(found: Mapping[str, Any] | None, digits: int) -> str:
    """`506 [410, 624]`, for intervals that are not symmetric."""
    if not found:
        return MISSING
    low, high = found["low"], found["high"]
    if low is None:
        return f"{found['mean']:.{digits}f}"
    if high > 1e6 * max(found["mean"], 1e-12):  # two seeds far apart: the interval says nothing
        return f"{found['mean']:.{digits}f} [no bound]"
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(found: Mapping[str, Any] | None) -> str:
    """`−2.91 % [−3.33, −2.50]` of a contrast of log loss."""
    if not found or found.get("estimate") is None:
        return MISSING
    low, high = found["low"], found["high"]
    if low is None:
        bounds = ""
    elif high > MOST_LOG:  # two seeds far apart: the interval says nothing, and a float may not hold it
        bounds = " [no bound]"
    else:
        bounds = f" [{100 * math.expm1(low):+.2f}, {100 * math.expm1(high):+.2f}]"
    return minus(f"{100 * math.expm1(found['estimate']):+.2f} %{bounds}")


def milliseconds(found: Mapping[str, Any] | None) -> str:
    return f"{1000 * found['mean']:.3g} ms" if found else MISSING


def number(found: Mapping[str, Any] | None) -> str:
    """`+0.0137 [+0.0122, +0.0152]`."""
    if not found or found.get("estimate") is None:
        return MISSING
    digits = decimals(found)
    bounds = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return minus(f"{found['estimate']:+.{digits}f}{bounds}")


def decimals(found: Mapping[str, Any]) -> int:
    """Two significant digits of the half-width, between 2 and 6 decimals."""
    half = abs(found["estimate"]) if found["low"] is None else (found["high"] - found["low"]) / 2
    return 2 if half <= 0 else min(6, max(2, 1 - math.floor(math.log10(half))))


def p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def share(found: Mapping[str, float] | None) -> str:
    return f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" if found else MISSING
