"""What is said of an imported curve: its own fit. The rule of evidence pairs trials by seed; here is nothing to pair.

Intervals are those of the fit of one curve (zslx/deceleration/intervals.py): its noise, and not the spread over seeds.
"""

from __future__ import annotations

from analysis.inference.rows import ImportedRow, Interval
from analysis.study.imported import Imported
from zslx.deceleration.fit import Fit, fit
from zslx.deceleration.slopes import tail_slope

NOT_COMPARED = "not compared: no paired seeds"


def imported_row(found: Imported) -> ImportedRow:
    """L_d, t_d, r_d and the tail slope of one curve."""
    at = fit(found.curve)
    L_d, t_d, r_d = (_measure(at, name) for name in ("L_d", "t_d", "r_d"))
    return {
        "arm": found.name,
        "source": found.source,
        "word": NOT_COMPARED,
        "sentence": f"{found.name}: {NOT_COMPARED}; {said(at)}.",
        "points": int(found.curve.steps.size),
        "T": float(found.curve.steps[-1]),
        "L_d": L_d,
        "t_d": t_d,
        "r_d": r_d,
        "tail_slope": _tail(found),
        "status": at.status,
        "reason": at.reason,
    }


def said(at: Fit) -> str:
    """The break as a clause, or why there is none."""
    if at.L_d is None or at.t_d is None or at.r_d is None:
        return f"no break is identified in its curve ({at.status})"
    return f"its curve decelerates at L_d {at.L_d:.3f}, t_d {at.t_d:.0f}, r_d {at.r_d:.4f}"


def _measure(at: Fit, name: str) -> Interval | None:
    """The number with its interval; one that is not identified describes the fit."""
    value = getattr(at, name)
    if value is not None:
        low, high = at.ci95.get(name) or (None, None)
        return {"mean": value, "low": low, "high": high, "n": 1, "identified": True}
    if not at.estimate or name not in at.estimate:
        return None
    return {"mean": at.estimate[name], "low": None, "high": None, "n": 1, "identified": False}


def _tail(found: Imported) -> Interval | None:
    try:
        mean, low, high = tail_slope(found.curve)
    except ValueError:  # too few points
        return None
    return {"mean": mean, "low": low, "high": high, "n": 1}
