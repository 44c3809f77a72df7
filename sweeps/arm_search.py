"""The search of one arm: its ranges, its Optuna study in memory, and what each point came to (search.py)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.study.arm import Arm
from analysis.study.tuning import COMPLEMENT, cut_at, setting_of
from sweeps.arms import with_settings
from sweeps.halving import FACTOR
from zslx.intervention import registry
from zslx.intervention.search_range import SearchRange, search_range

if TYPE_CHECKING:
    import optuna

BATCH = 4  # points of an arm that are asked for at a time; Optuna counts those that wait as poor ones
MOST = 1000
RATE = "rate"
RATES = SearchRange(low=0.25, high=4.0, log=True, start=1.0)  # factors on the preset's learning rate

Settings = dict[str, dict[str, Any]]


def checked(points: int) -> int:
    """How many points an arm gets; ValueError for fewer than 2, of which one is the arm as it is."""
    if not 2 <= points <= MOST:
        raise ValueError(f"SEARCH={points}: allowed are 2 to {MOST} points an arm, the first being the arm as it is")
    return points


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a point came to: `value` and its standard error over seeds, or `why` there is none.

    `rungs`: its values at the rungs to which it came, by their steps; the last of them is where it was cut, if it was.
    """

    state: str  # complete, cut (halving.py), diverged or failed
    value: float | None = None
    se: float | None = None
    why: str = ""
    rungs: Mapping[str, float] = field(default_factory=dict)

    @property
    def cut(self) -> str:
        """Where a point was cut, and its value there; empty for any other."""
        return cut_at(self.rungs) if self.state == "cut" else ""


class ArmSearch:
    """The search of one arm: its ranges and its Optuna study, in memory.

    `points` to ask for in all. `rungs`: the steps at which points may be cut; none where each is trained to its end.
    """

    def __init__(self, arm: Arm, points: int, rungs: Sequence[int] = ()):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.arm, self.points = arm, points
        self.ranges = ranges(arm)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=min(10, points // 2))
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if rungs:
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=FACTOR)
        self.study = optuna.create_study(sampler=sampler, pruner=pruner)
        self.study.enqueue_trial({name: r.start for name, r in self.ranges.items()})
        self.values: dict[int, Value] = {}  # by point

    @property
    def done(self) -> bool:
        return len(self.values) >= self.points

    def ask(self) -> list[optuna.Trial]:
        """The next points."""
        distributions = {name: distribution(r) for name, r in self.ranges.items()}
        return [self.study.ask(distributions) for _ in range(min(BATCH, self.points - len(self.values)))]

    def tell(
        self, asked: Sequence[optuna.Trial], values: Sequence[Value], rung: int | None = None
    ) -> list[optuna.Trial]:
        """What came of the points asked for, in their order: at the end of their trials, or at a rung, by its step.
        Returns those that go on from there."""
        left = []
        for trial, value in zip(asked, values, strict=True):
            if rung is None or value.value is None:
                self._over(trial, value)
                continue
            trial.report(value.value, rung)
            if trial.should_prune():
                self._over(trial, Value(state="cut"))
            else:
                left.append(trial)
        return left

    def _over(self, trial: optuna.Trial, value: Value) -> None:
        """A point is over, as it is told to Optuna: to its sampler a point that was cut, or diverged, is worse than all
        that have a value, the worse the earlier."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
        known = self.study.trials[trial.number].intermediate_values
        value = dataclasses.replace(value, rungs={str(step): known[step] for step in sorted(known)})
        for key, what in (
            ("standard error", value.se),
            ("why", value.why),
            ("cut", value.cut),
            ("settings", self.described(trial)),
        ):
            if what:
                trial.set_user_attr(key, what)
        self.study.tell(trial, value.value, states.get(value.state, TrialState.PRUNED))
        self.values[trial.number] = value

    def described(self, trial: Any) -> dict[str, Any]:
        """The settings of a point as SET has them, and the factor on its rate."""
        return {setting_of(n): r.setting(trial.params[n]) for n, r in self.ranges.items()}

    def at(self, trial: Any, sizes: Sequence[str]) -> Arm:
        """The arm at a point; at point 0, the arm as it is."""
        if trial.number == 0:
            return self.arm
        rate, settings = self.found(trial)
        role = "control" if self.arm.role == "baseline" else self.arm.role
        return dataclasses.replace(
            with_settings(self.arm, {self.arm.name: settings}),
            name=f"{self.arm.name} #{trial.number}",
            role=role,
            rates=dict.fromkeys(sizes, rate),
        )

    def found(self, trial: Any) -> tuple[float, Settings]:
        """(factor on the learning rate, settings by method) of a point; of point 0 those that the arm has."""
        settings: Settings = {}
        flat = self.described(trial) if trial.number else {RATE: 1.0}
        rate = flat.pop(RATE)
        for key, value in flat.items():
            method, _, name = key.partition(".")
            settings.setdefault(method, {})[name] = value
        return rate, settings

    def best(self) -> optuna.trial.FrozenTrial:
        """The point of the lowest value, the first of several; ValueError where no point has one."""
        known = [(v.value, n) for n, v in self.values.items() if v.value is not None]
        if not known:
            raise ValueError(f"no point of {self.arm.name} came to an end: give another optim.lr by SET")
        return self.study.trials[min(known)[1]]

    def importances(self) -> dict[str, float]:
        """Share of each setting in the variation of the better points (PED-ANOVA); empty where there is too little."""
        import optuna

        if len({v.value for v in self.values.values() if v.value is not None}) < 4:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(self.study)
        return {name: float(share) for name, share in found.items() if math.isfinite(share)}

    def summary(self) -> dict[str, Any]:
        """What study.json keeps of it: the ranges, the arm as it is, every point, the best one and the importances."""
        best = self.best()
        rate, settings = self.found(best)
        points = []
        for trial in self.study.trials:
            at, of = self.found(trial)
            value = dataclasses.asdict(self.values[trial.number])
            points.append({"point": trial.number, "rate": at, "settings": of, **value})
        return {
            "arm": self.arm.name,
            "ranges": {name: str(r) for name, r in self.ranges.items()},
            "start": self.described(self.study.trials[0]),
            "points": points,
            "best": {"point": best.number, "rate": rate, "settings": settings},
            "importances": self.importances(),
        }


def ranges(arm: Arm) -> dict[str, SearchRange]:
    """What is searched of an arm, by Optuna's name of it: the rate, and `method.setting` without those given by SET."""
    found = {RATE: RATES}
    if arm.role == "baseline":
        return found
    for method in registry.load_spec(arm.intervention, arm.settings):
        given = arm.settings.get(method.name, {})
        for row in method.card()["settings"]:
            if row["name"] not in given and (r := search_range(row)):
                found[f"{COMPLEMENT * r.complement}{method.name}.{row['name']}"] = r
    return found


def distribution(r: SearchRange) -> optuna.distributions.BaseDistribution:
    """A range in Optuna's words."""
    from optuna import distributions

    if r.choices:
        return distributions.CategoricalDistribution(r.choices)
    if r.whole:
        return distributions.IntDistribution(int(r.low), int(r.high), log=r.log)
    return distributions.FloatDistribution(r.low, r.high, log=r.log)
