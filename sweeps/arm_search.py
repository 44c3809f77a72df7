"""The search of one arm: its ranges, its Optuna study in memory, and what each point came to (search.py)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.study.arm import Arm
from sweeps.arms import with_settings
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
    """What a point came to: `value` and its standard error over seeds, or `why` there is none."""

    state: str  # complete, pruned or failed
    value: float | None = None
    se: float | None = None
    why: str = ""


class ArmSearch:
    """The search of one arm: its ranges and its Optuna study, in memory. `points` to ask for in all."""

    def __init__(self, arm: Arm, points: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.arm, self.points = arm, points
        self.ranges = ranges(arm)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=min(10, points // 2))
        self.study = optuna.create_study(sampler=sampler)
        self.study.enqueue_trial({name: r.start for name, r in self.ranges.items()})
        self.values: list[Value] = []

    @property
    def done(self) -> bool:
        return len(self.values) >= self.points

    def ask(self) -> list[optuna.Trial]:
        """The next points."""
        distributions = {name: distribution(r) for name, r in self.ranges.items()}
        return [self.study.ask(distributions) for _ in range(min(BATCH, self.points - len(self.values)))]

    def tell(self, asked: Sequence[optuna.Trial], values: Sequence[Value]) -> None:
        """What came of the points asked for, in their order."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for trial, value in zip(asked, values, strict=True):
            for key, known in (("standard error", value.se), ("why", value.why), ("settings", self.described(trial))):
                if known:
                    trial.set_user_attr(key, known)
            self.study.tell(trial, value.value, states[value.state])
            self.values.append(value)

    def described(self, trial: Any) -> dict[str, Any]:
        """The settings of a point as SET has them, and the factor on its rate."""
        return {(n if r is RATES else n.split()[-1]): r.setting(trial.params[n]) for n, r in self.ranges.items()}

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
        known = [(v.value, n) for n, v in enumerate(self.values) if v.value is not None]
        if not known:
            raise ValueError(f"no point of {self.arm.name} came to an end: give another optim.lr by SET")
        return self.study.trials[min(known)[1]]

    def importances(self) -> dict[str, float]:
        """Share of each setting in the variation of the better points (PED-ANOVA); empty where there is too little."""
        import optuna

        if len({v.value for v in self.values if v.value is not None}) < 4:
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
        for trial, value in zip(self.study.trials, self.values, strict=True):
            at, of = self.found(trial)
            points.append({"point": trial.number, "rate": at, "settings": of, **dataclasses.asdict(value)})
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
                found[f"{'1 - ' * r.complement}{method.name}.{row['name']}"] = r
    return found


def distribution(r: SearchRange) -> optuna.distributions.BaseDistribution:
    """A range in Optuna's words."""
    from optuna import distributions

    if r.choices:
        return distributions.CategoricalDistribution(r.choices)
    if r.whole:
        return distributions.IntDistribution(int(r.low), int(r.high), log=r.log)
    return distributions.FloatDistribution(r.low, r.high, log=r.log)
