"""Searches the settings and the learning rate of each arm, with Optuna, before a study and on seeds of its own.

One Optuna study an arm. A point is a factor on the preset's learning rate and values of the settings that the arm's
methods declare (zslx/intervention/search_range.py), without those that SET gives; the baseline has its rate alone, and
as many points. Point 0 is the arm as it is. Each point is trained at the smallest size with SEEDS, and its value is the
mean, over seeds, of the difference in log held-out loss at T to the baseline as it is: paired, as the comparison is.

Every point is trials of the ledger, and Optuna is told the values in the order of the points, BATCH at a time whatever
the machine. Its sampler is seeded. So the same command asks for the same points again and finds the finished ones in
the ledger: an interrupted search goes on by asking from the start. Which points failed is kept beside it
(failed_points.py). What Optuna knows is nowhere else needed; search_storage.py keeps a copy for its dashboard.

Ray's own OptunaSearch and schedulers do not fit: they have one trial a point, take values as they happen to arrive, and
resume from a pickle. A trial that diverged makes its point `diverged`, which the sampler takes for worse than every
value; one that failed makes it `failed`, which the sampler leaves out. With `halving`, points are also `cut`
(halving.py): the trials of a round train to the first rung, those of the points that are left to the next one, and the
last ones to their end. Every rung is a study of its own that trains the same trials further, so an interruption, or a
trial that an earlier search without halving has finished, changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.study.arm import Arm
from analysis.study.load import Study
from analysis.study.measures import Measures
from analysis.study.tuning import searched, train_seconds
from sweeps.arm_search import BATCH, ArmSearch, Settings, Value
from sweeps.arms import BASELINE_ARM
from sweeps.failed_points import FailedPoints
from sweeps.halving import at_rung, measured_before, rungs
from sweeps.packing import AUTO
from sweeps.planned import PlannedTrial
from sweeps.study import PlannedStudy, build, with_arms
from sweeps.tune_rate import SEEDS, is_tuned, unprobed
from zslx.config import presets
from zslx.config.sizes import model_preset
from zslx.intervention import registry
from zslx.runs.digest import digest
from zslx.slug import slug

if TYPE_CHECKING:
    import optuna


class Search:
    """The searches of all arms of a study, in rounds. `study` is what was asked for, at the smallest size and SEEDS."""

    def __init__(
        self,
        asked: Sequence[str],
        preset: str,
        points: int,
        *,
        sizes: Sequence[str],
        overrides: Sequence[str],
        pack: str = AUTO,
        results: str | Path = "results",
        halving: bool = False,
    ):
        smallest = min(sizes or presets.preset(preset).sizes, key=lambda s: model_preset(s).parameters(1).total)
        self.results = results
        settings = unprobed(overrides)
        plain = build(asked, preset, sizes=[smallest], seeds=SEEDS, overrides=settings, pack=pack, results=results)
        searched = [arm for arm in plain.arms if is_tuned(arm)]
        self.config = plain.trials[0].config  # of the baseline, whose steps are those of all
        self.rungs = rungs(self.config) if halving else ()
        self.arms = [ArmSearch(arm, points, self.rungs) for arm in searched]
        self.points, self.size = points, smallest
        self.study = with_arms(plain, searched, results)
        kind: list[Any] = [[t.key for t in self.study.trials], points]
        kind += [[sorted(map(str, s.ranges.items())) for s in self.arms], *self.rungs]
        self.name = f"{slug('-'.join(asked))}-search-{preset}-{digest(kind)[:8]}"
        self.failed = FailedPoints(Path(results) / "studies" / self.name)
        self.planned: list[Arm] = []
        self.refused: dict[str, Value] = {}
        self.asked: list[tuple[ArmSearch, list[optuna.Trial]]] = []  # points of this round that are not over
        self.round = 0
        self.to_come: list[int] = []  # steps to which they are still to be trained
        self.until: dict[str, int] = {}  # the step to which a point is to be trained, by its arm
        self.measured: Study | None = None

    @property
    def heading(self) -> str:
        """Which part of the search `ask` has given."""
        to = f", to step {self.to_come[0]} of {self.config.train.steps}" if self.rungs else ""
        return f"search, round {self.round} of {-(-self.points // BATCH)}{to}"

    @property
    def between_rounds(self) -> bool:
        """Whether every point that was asked for is over."""
        return not any(trials for _, trials in self.asked)

    def ask(self) -> PlannedStudy | None:
        """The study of all points so far and the next ones, or those that go on; None where every point is over.

        It has one name from the first round to the last. Points that failed, or whose settings do not go together, are
        left out.
        """
        if self.between_rounds:
            if all(search.done for search in self.arms):
                return None
            self._begin_round()
        self._leave_out(self.to_come[0])
        for search, trials in self.asked:
            self.until |= {search.at(trial, [self.size]).name: self.to_come[0] for trial in trials}
        study = with_arms(self.study, self.planned, self.results)
        return dataclasses.replace(study, name=self.name, trials=self._up_to(study.trials))

    def _begin_round(self) -> None:
        self.round, self.to_come = self.round + 1, [*self.rungs, self.config.train.steps]
        self.asked = [(search, search.ask()) for search in self.arms]
        for search, trials in self.asked:
            for trial in trials:
                arm = search.at(trial, [self.size])
                try:
                    registry.load_spec(arm.intervention, arm.settings)
                    self.planned.append(arm)
                except ValueError as error:
                    self.refused[arm.name] = Value(state="failed", why=str(error))

    def _leave_out(self, step: int) -> None:
        """Plan no further those that failed on the way to this step, now or when the command was given before."""
        self.planned = [arm for arm in self.planned if self.failed.why(arm.name, step) is None]

    def _up_to(self, trials: Sequence[PlannedTrial]) -> tuple[PlannedTrial, ...]:
        """The trials, each to be trained as far as its point is; one of two points, as far as either."""
        if not self.rungs:
            return tuple(trials)
        until = {trial.key: 0 for trial in trials}
        for trial in trials:
            until[trial.key] = max(until[trial.key], self.until[trial.arm])
            if trial.reference and trial.reference.key in until:
                until[trial.reference.key] = trial.config.train.steps
        return tuple(trial.up_to(until[trial.key]) for trial in trials)

    def tell(self, measured: Study) -> list[str]:
        """What was asked for is trained: `measured` is that study with its records. A line an arm says what was cut."""
        self.measured, lines = measured, []
        step = self.to_come.pop(0)
        rung = step if self.to_come else None
        values = self._values(at_rung(measured, step) if rung else measured, step)
        failed = {name: value.why for name, value in values.items() if value.state == "failed"}
        self.failed.add({name: why for name, why in failed.items() if name not in self.refused}, step)
        self._leave_out(step)
        for n, (search, trials) in enumerate(self.asked):
            left = search.tell(trials, [values[search.at(trial, [self.size]).name] for trial in trials], rung)
            self.asked[n] = (search, left)
            over = {t.number: search.values[t.number].cut for t in trials if t not in left}
            if cut := [f"#{point} {where}" for point, where in over.items() if where]:
                lines.append(f"cut of {search.arm.name}: {'; '.join(cut)}")
        return lines

    def _values(self, measured: Study, step: int) -> dict[str, Value]:
        """What the points of this round came to on the way to a step, by their arms."""
        if wrong := [t for t in measured.trials if t.arm == BASELINE_ARM and not t.finished]:
            told = f"seed {wrong[0].seed} {wrong[0].status}" + (f": {wrong[0].error}" if wrong[0].error else "")
            diverged = wrong[0].status == "diverged"
            raise ValueError(
                f"the baseline as it is did not come to an end on each tuning seed ({told}): "
                + ("give another optim.lr by SET" if diverged else "mend that and give the same command again")
            )
        values = {}
        for name in (search.at(trial, [self.size]).name for search, trials in self.asked for trial in trials):
            why = self.failed.why(name, step)
            failed = self.refused.get(name) or (None if why is None else Value(state="failed", why=why))
            values[name] = failed or value_of(measured, name)
        return values

    def studies(self) -> list[tuple[str, optuna.Study]]:
        """Optuna's studies, by the names under which they are kept."""
        return [(f"{self.name}: {search.arm.name}", search.study) for search in self.arms]

    @property
    def rates(self) -> dict[str, float]:
        """The best factor on the rate, by arm."""
        return {search.arm.name: search.found(search.best())[0] for search in self.arms}

    @property
    def settings(self) -> dict[str, Settings]:
        """The best settings, by arm."""
        return {search.arm.name: search.found(search.best())[1] for search in self.arms}

    def summary(self) -> dict[str, Any]:
        """What study.json of the comparison says of its tuning, once every point has its value."""
        measured = self.measured
        assert measured is not None
        return {
            "by": "optuna",
            "study": self.name,
            "size": self.size,
            "seeds": list(SEEDS),
            "points": self.points,
            "trials": len(measured.trials),
            "train_seconds": train_seconds(measured.trials),
            **({"halving": self.halved(measured)} if self.rungs else {}),
            "arms": [search.summary() for search in self.arms],
        }

    def halved(self, measured: Study) -> dict[str, Any]:
        """The rungs and the steps measured before them, how many points were cut, and the steps of all trials."""
        trained = {t.identity: int((t.manifest.get("totals") or {}).get("steps") or 0) for t in measured.trials}
        return {
            "rungs": list(self.rungs),
            "measured": measured_before(self.config, self.rungs),
            "cut": sum(value.state == "cut" for search in self.arms for value in search.values.values()),
            "steps_trained": sum(trained.values()),
            "steps_in_all": len(trained) * self.config.train.steps,
        }

    def announce(self) -> list[str]:
        """What is searched, a line an arm."""
        trials = self.points * len(SEEDS) * len(self.arms)
        lines = [
            f"search: {self.points} points an arm at {self.size}, seeds {' '.join(map(str, SEEDS))}: {trials} trials"
        ]
        if self.rungs:
            steps = " and ".join(map(str, self.rungs))
            lines.append(f"  of these, points that are worse at steps {steps} of {self.config.train.steps} are cut")
        if count := len(self.failed.points):
            which = ", ".join(self.failed.points)
            lines.append(f"  {count} failed before and stay so ({which}); {self.failed.path} keeps that")
        return lines + [f"  {search.arm.name}: {searched(search.ranges)}" for search in self.arms]

    def describe(self) -> list[str]:
        """One line an arm: what was found."""
        lines = []
        if self.rungs and self.measured:
            found = self.halved(self.measured)
            lines.append(f"cut early: {found['cut']} of {self.points * len(self.arms)} points; {saved(found)}")
        for search in self.arms:
            best = search.best()
            rate, settings = search.found(best)
            value = search.values[best.number]
            pairs = [f"{m}.{k}={v}" for m, of in settings.items() for k, v in of.items()]
            lines.append(
                f"best of {search.arm.name}: point {best.number} of {self.points}, rate x {rate:.3g}"
                + "".join(f" {pair}" for pair in pairs)
                + f", log loss {value.value:+.4f} against the untuned baseline"
            )
        return lines


def saved(halving: Mapping[str, Any]) -> str:
    """What halving saved, in steps."""
    trained, of = halving["steps_trained"], halving["steps_in_all"]
    return f"{trained} of {of} steps were trained, {100 * (1 - trained / of):.0f} % saved"


def value_of(study: Study, name: str) -> Value:
    """The value of the point that is the arm `name` of a study with its records.

    It depends on the point and the baseline, whose trials are finished, alone: what is told to Optuna is the same in
    every round. At a rung, `study` is the study as it stood there.
    """
    found = {arm: [t for t in study.trials if t.arm == arm] for arm in (BASELINE_ARM, name)}
    for trial in found[name]:
        if not trial.finished:
            why = f"seed {trial.seed} {trial.status}" + (f": {trial.error}" if trial.error else "")
            return Value(state="diverged" if trial.status == "diverged" else "failed", why=why)
    arms = tuple(arm for arm in study.arms if arm.name in found)
    both = [trial for arm in found for trial in found[arm]]
    measures = Measures(dataclasses.replace(study, arms=arms, trials=tuple(both)))
    pairs = zip(found[name], found[BASELINE_ARM], strict=True)
    differences = np.array([measures.log_loss(a) - measures.log_loss(b) for a, b in pairs])
    if not np.isfinite(differences).all():
        return Value(state="failed", why="it has no held-out loss at T")
    se = float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else None
    return Value(state="complete", value=float(differences.mean()), se=se)
