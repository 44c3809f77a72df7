"""Searches the settings and the learning rate of each arm, with Optuna, before a study and on seeds of its own.

One Optuna study an arm. A point is a factor on the preset's learning rate and values of the settings that the arm's
methods declare (zslx/intervention/search_range.py), without those that SET gives; the baseline has its rate alone, and
as many points. Point 0 is the arm as it is. Each point is trained at the smallest size with SEEDS, and its value is the
mean, over seeds, of the difference in log held-out loss at T to the baseline as it is: paired, as the comparison is.

Every point is trials of the ledger, and Optuna is told the values in the order of the points, BATCH at a time whatever
the machine. Its sampler is seeded. So the same command asks for the same points again and finds the finished ones in
the ledger: an interrupted search goes on by asking from the start. What Optuna knows is nowhere else needed;
search_storage.py keeps a copy for its dashboard.

Ray's own OptunaSearch does not fit: it has one trial a point, tells values as they happen to arrive, and resumes from
a pickle. A trial that diverged makes its point `pruned`, which the sampler takes for worse than every value; one that
failed makes it `failed`, which the sampler leaves out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.study.arm import Arm
from analysis.study.load import Study
from analysis.study.measures import Measures
from sweeps.arm_search import BATCH, ArmSearch, Settings, Value
from sweeps.arms import BASELINE_ARM
from sweeps.packing import AUTO
from sweeps.study import PlannedStudy, build, with_arms
from sweeps.tune_rate import SEEDS, UNPROBED
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
    ):
        smallest = min(sizes or presets.preset(preset).sizes, key=lambda s: model_preset(s).parameters(1).total)
        self.results = results
        settings = [*overrides, UNPROBED]
        plain = build(asked, preset, sizes=[smallest], seeds=SEEDS, overrides=settings, pack=pack, results=results)
        searched = [arm for arm in plain.arms if arm.role in ("baseline", "arm")]
        self.arms = [ArmSearch(arm, points) for arm in searched]
        self.points, self.size = points, smallest
        self.study = with_arms(plain, searched, results)
        kind = [[t.key for t in self.study.trials], points, [sorted(map(str, s.ranges.items())) for s in self.arms]]
        self.name = f"{slug('-'.join(asked))}-search-{preset}-{digest(kind)[:8]}"
        self.planned: list[Arm] = []
        self.refused: dict[str, Value] = {}
        self.asked: list[tuple[ArmSearch, list[optuna.Trial]]] = []
        self.measured: Study | None = None

    @property
    def count(self) -> int:
        """Rounds in all."""
        return -(-self.points // BATCH)

    def ask(self) -> PlannedStudy | None:
        """The study of all points so far and the next ones; None where every point has its value.

        It has one name from the first round to the last. Points whose settings do not go together are left out.
        """
        if all(search.done for search in self.arms):
            return None
        self.asked = [(search, search.ask()) for search in self.arms]
        for search, trials in self.asked:
            for trial in trials:
                arm = search.at(trial, [self.size])
                try:
                    registry.load_spec(arm.intervention, arm.settings)
                    self.planned.append(arm)
                except ValueError as error:
                    self.refused[arm.name] = Value(state="failed", why=str(error))
        return dataclasses.replace(with_arms(self.study, self.planned, self.results), name=self.name)

    def tell(self, measured: Study) -> None:
        """The points that were asked for are trained: `measured` is that study with its records."""
        self.measured = measured
        for search, trials in self.asked:
            names = [search.at(trial, [self.size]).name for trial in trials]
            search.tell(trials, [self.refused.get(name) or value_of(measured, name) for name in names])

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
        seconds = sum(float((t.manifest.get("totals") or {}).get("train_seconds") or 0) for t in measured.trials)
        return {
            "by": "optuna",
            "study": self.name,
            "size": self.size,
            "seeds": list(SEEDS),
            "points": self.points,
            "trials": len(measured.trials),
            "train_seconds": seconds,
            "arms": [search.summary() for search in self.arms],
        }

    def announce(self) -> list[str]:
        """What is searched, a line an arm."""
        trials = self.points * len(SEEDS) * len(self.arms)
        lines = [
            f"search: {self.points} points an arm at {self.size}, seeds {' '.join(map(str, SEEDS))}: {trials} trials"
        ]
        return lines + [
            f"  {search.arm.name}: " + "; ".join(f"{name} {r}" for name, r in search.ranges.items())
            for search in self.arms
        ]

    def describe(self) -> list[str]:
        """One line an arm: what was found."""
        lines = []
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


def value_of(study: Study, name: str) -> Value:
    """The value of the point that is the arm `name` of a study with its records.

    It depends on the point and the baseline alone, so that what is told to Optuna is the same in every round.
    """
    found = {arm: [t for t in study.trials if t.arm == arm] for arm in (BASELINE_ARM, name)}
    for trial in found[name]:
        if not trial.finished:
            why = f"seed {trial.seed} {trial.status}" + (f": {trial.error}" if trial.error else "")
            return Value(state="pruned" if trial.status == "diverged" else "failed", why=why)
    if any(not trial.finished for trial in found[BASELINE_ARM]):
        raise ValueError(
            "the baseline as it is did not come to an end on each tuning seed: give another optim.lr by SET"
        )
    arms = tuple(arm for arm in study.arms if arm.name in found)
    both = [trial for arm in found for trial in found[arm]]
    measures = Measures(dataclasses.replace(study, arms=arms, trials=tuple(both)))
    pairs = zip(found[name], found[BASELINE_ARM], strict=True)
    differences = np.array([measures.log_loss(a) - measures.log_loss(b) for a, b in pairs])
    if not np.isfinite(differences).all():
        return Value(state="failed", why="it has no held-out loss at T")
    se = float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else None
    return Value(state="complete", value=float(differences.mean()), se=se)
