"""The trials of a study, planned: settings, identity and folder of each, and the reference runs that they need.

Some methods need another run: its losses, or what a controller did in it (for the placebo that repeats this in another
order). Without SET="reference=..." the sweep trains it, as a trial of the ledger that studies share, before the trials
that need it:

    for losses     a baseline of the same size with the settings of SET, at the rate before any tuning, with seed SEED
    for actions    the method without its placebo, at the trial's rate, with the trial's seed + 1

A trial's identity contains that of its reference. This follows from the reference's own settings, so it is the same
whether the reference is trained yet or not, and wherever its folder lies.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.study.arm import Arm
from sweeps.arms import REFERENCE, needed_by
from sweeps.grids import Pairs
from sweeps.packing import packed
from zslx.config.groups import GROUPS
from zslx.config.presets import Preset
from zslx.config.run_config import Config, override
from zslx.intervention import registry
from zslx.runs.digest import digest
from zslx.runs.identity import ingredients
from zslx.text.token_cache import with_vocabulary

SEED = 2000  # of a reference for losses: no sweep takes it by itself, and the tuning of rates has 1000 to 1002


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One run of a study. `key` names its folder: the identity, lengthened where SET changes what is measured.

    `packed`: it trains in a pack (packing.py), alone in it perhaps. `reference`: the run that the sweep trains
    first, since this trial needs it. The `arm` of a reference run says what it is. `made_of`: what the identity hashes
    beside the settings, such as sources and versions.
    """

    arm: str
    size: str
    seed: int
    config: Config
    identity: str
    key: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    packed: bool = False
    reference: PlannedTrial | None = None

    @property
    def label(self) -> str:
        return f"{self.arm}/{self.size}/{self.seed}"

    @property
    def steps(self) -> int:
        """The step to which it is to be trained: its last, or `run.until` (halving.py)."""
        return self.config.run.until or self.config.train.steps

    def up_to(self, step: int) -> PlannedTrial:
        """The same trial, to be trained to a step and no further."""
        until = step if step < self.config.train.steps else 0
        config = dataclasses.replace(self.config, run=dataclasses.replace(self.config.run, until=until))
        return dataclasses.replace(self, config=config)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """What all trials of a study have in common. `results` is where the reference runs will lie."""

    preset: Preset
    sizes: Sequence[str]
    seeds: Sequence[int]
    pairs: Pairs
    pack: str
    results: str | Path

    def trials(self, arms: Iterable[Arm]) -> tuple[tuple[PlannedTrial, ...], tuple[PlannedTrial, ...]]:
        """The trials of the arms, and those reference runs, each once, that are not among them."""
        own: list[PlannedTrial] = []
        needed: dict[str, PlannedTrial] = {}
        for arm in arms:
            for size in self.sizes:
                trials, references = self._of(arm, size)
                own += trials
                needed |= {trial.key: trial for trial in references}
        keys = {trial.key for trial in own}
        return tuple(own), tuple(trial for trial in needed.values() if trial.key not in keys)

    def _of(self, arm: Arm, size: str) -> tuple[list[PlannedTrial], list[PlannedTrial]]:
        """The trials of one arm at one size, and their reference runs."""
        plain = self.preset.for_size(size)
        plain = override(plain, [(key, value) for key, value in self.pairs if key.partition(".")[0] in GROUPS])
        plain = with_vocabulary(plain)
        config = dataclasses.replace(plain, intervention=arm.intervention, settings=arm.settings)
        if factor := arm.rates.get(size):
            lr = float(f"{config.optim.lr * factor:.3g}")
            config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr))
        needs, given = needed_by(arm), dict(self.pairs).get(REFERENCE, "")
        if given or not needs:
            # Absolute, since trials run elsewhere.
            config = dataclasses.replace(config, reference=str(Path(given).resolve()) if needs else "")
            return self._series(arm.name, size, config, self.seeds), []
        if len(needs) > 1:
            losses, actions = needs["reference_losses"], needs["reference_actions"]
            raise ValueError(
                f"{arm.name}: {losses} needs the losses of a reference run and {actions} the actions of another, and "
                f'a run has one: compare them apart, or give SET="{REFERENCE}=RUN_FOLDER" of a run that has both'
            )
        if "reference_losses" in needs:
            if SEED in self.seeds:
                raise ValueError(f"SEEDS: {SEED} is the seed of the reference run of {arm.name}: allowed is any other")
            references = self._series(REFERENCE, size, plain, [SEED])
            used = references * len(self.seeds)
        else:
            followed = registry.reference_of(config)  # the method without its placebo, its settings and rate the same
            assert followed is not None
            name = f"{REFERENCE} {followed.intervention}"
            references = used = self._series(name, size, followed, [seed + 1 for seed in self.seeds])
        return self._series(arm.name, size, config, self.seeds, used), references

    def _series(
        self,
        arm: str,
        size: str,
        config: Config,
        seeds: Sequence[int],
        references: Sequence[PlannedTrial] = (),
    ) -> list[PlannedTrial]:
        """A trial for each seed, each with its reference run where there are some.

        They differ in the seed and the reference alone, so the rest is hashed once.
        """
        together = packed(config, self.pack)
        parts = ingredients(config, packed=together)
        made_of = {name: part for name, part in parts.items() if name != "config"}  # one for all
        usual = config.instruments == self.preset.config.instruments
        measured = "" if usual else digest(config.to_dict()["instruments"])[:8]
        found = []
        for seed, reference in zip(seeds, references or itertools.repeat(None, len(seeds)), strict=True):
            own = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            parts["config"]["train"]["seed"] = seed
            if reference:
                own = dataclasses.replace(own, reference=str(folder(self.results, reference.key).resolve()))
                parts["config"]["reference"] = reference.identity
            name = digest(parts)
            found.append(
                PlannedTrial(
                    arm=arm,
                    size=size,
                    seed=seed,
                    config=own,
                    identity=name,
                    key=name + measured,
                    made_of=made_of,
                    packed=together,
                    reference=reference,
                )
            )
        return found


def folder(results: str | Path, key: str) -> Path:
    """The run folder of a trial."""
    return Path(results) / "trials" / key
