"""The order of training: reference runs first, then the trials that need them, as far as these finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sweeps.outcome import Failure
from sweeps.planned import PlannedTrial


def rounds(trials: Iterable[PlannedTrial]) -> list[list[PlannedTrial]]:
    """The trials in at most two rounds: those that others of them need, then the rest. A reference needs no other."""
    every = list(trials)
    needed = {trial.reference.key for trial in every if trial.reference}
    first = [trial for trial in every if trial.key in needed]
    rest = [trial for trial in every if trial.key not in needed]
    return [some for some in (first, rest) if some]


def lost(
    trials: Iterable[PlannedTrial], status: Callable[[PlannedTrial], str], failures: Mapping[str, Failure]
) -> dict[str, Failure]:
    """The trials whose reference run is over and not finished, by key, and why. `status` says how a run stands."""
    found = {}
    for trial in trials:
        if (reference := trial.reference) and (stands := status(reference)) != "finished":
            failure = failures.get(reference.key)
            what = f"failed: {failure.error}" if failure else f"is {stands}, not finished"
            found[trial.key] = Failure(f"its reference run {reference.label} {what}")
    return found
