"""How the tuning that study.json tells of departs from the protocol. Its trials are not in the archive: what it says of
them is taken as it stands, and only that the arms follow from it is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.study.arm import Arm
from analysis.study.load import Study
from zslx.runs.shapes import NUMBER, Shape, check

MOST_POINTS = 16  # of a search, for each arm and for the baseline
COMMON: dict[str, Shape] = {"study": str, "seeds": [int], "trials": int, "train_seconds": NUMBER}
RATES: Shape = {**COMMON, "log_loss": {"*": {"*": {"*": NUMBER | None}}}}  # by arm, size and factor
POINT: Shape = {"point": int, "rate": NUMBER, "value": NUMBER | None}
SEARCH: Shape = {**COMMON, "by": str, "size": str, "points": int, "arms": [{"arm": str, "points": [POINT]}]}


def tuning_departures(study: Study) -> Iterator[str]:
    """What is wrong with the tuning of a study, if it has one."""
    tuning = study.tuning
    if tuning is None:
        return
    try:
        check("its tuning", tuning, RATES if "log_loss" in tuning else SEARCH)
    except ValueError as error:
        yield str(error)
        return
    if shared := sorted({*tuning["seeds"]} & {*study.seeds}):
        yield f"tuned on seed {shared[0]}, which the comparison uses"
    if (points := most_points(tuning)) > MOST_POINTS:
        yield f"a search of {points} points an arm; allowed are {MOST_POINTS}"
    if tuning.get("halving"):
        yield "a search with successive halving, which favours what is fast at first"
    for arm in study.arms:
        for size in study.sizes:
            best, used = best_factor(tuning, arm, size), f"{arm.rates.get(size) or 1.0:.3g}"
            if best is None and arm.role == "baseline":
                yield f"its tuning has no rate of {arm.name} at {size}"
            elif best not in (None, used):
                yield f"{arm.name} at {size} has {used} times its rate, and its tuning found {best}"


def most_points(tuning: Mapping[str, Any]) -> int:
    """How many points an arm of a search has; 0 of a grid, which has no such number."""
    return 0 if "log_loss" in tuning else max([tuning["points"], *(len(arm["points"]) for arm in tuning["arms"])])


def best_factor(tuning: Mapping[str, Any], arm: Arm, size: str) -> str | None:
    """The factor on the rate, in three digits, at which a tuning found the lowest loss; None where it has no rate."""
    if "log_loss" in tuning:
        found = [(loss, factor) for factor, loss in tuning["log_loss"].get(arm.name, {}).get(size, {}).items()]
    else:
        own = [point for search in tuning["arms"] if search["arm"] == arm.name for point in search["points"]]
        found = [(point["value"], f"{point['rate']:.3g}") for point in own]
    known = [pair for pair in found if pair[0] is not None]
    return min(known, key=lambda pair: pair[0])[1] if known else None
