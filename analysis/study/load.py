"""Loads a study: what a sweep asked for, with the records that the ledger has of each trial.

    RESULTS/studies/<folder>/study.json    arms, sizes, seeds, and the identity of each trial (declaration.py)
    RESULTS/trials/<identity>/             the trial's run folder (zslx/runs/records.py), shared between studies

Reading never fails for one bad trial: a folder that is missing or damaged makes that trial `failed` with the
reason, which the report prints. Trials of another machine or version than most are set apart in the same
way: one comparison never mixes them. Only a study.json that is missing or damaged is an error.

Probe lines become numbers under dotted keys ("heldout_loss", "dt1_heldout.D"), so that 10,000 trials fit in
memory. Beside them only the matrices over domains are kept (doublings.py), nothing else of a run. Cost: about 3 ms a
trial of 100 probe lines (benchmarks/analysis.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.study.arm import Arm
from analysis.study.declaration import FILE, Declaration, Entry
from analysis.study.doublings import Doublings, doublings
from analysis.study.imported import Imported, read_imported
from zslx.config.run_config import Config
from zslx.runs.integrity import fault
from zslx.runs.json_files import last_line, read_json
from zslx.runs.records import OVER, Run, numbers, read_run

LARGEST_LOSS = 1e6  # nats per token; a vocabulary of 10^5 entries starts at 12
MOST_TOKENS = 1e18
IDENTITY = re.compile(r"[0-9a-f]{8,64}")
# What must agree between trials that are compared: (part of the manifest, key).
ENVIRONMENT = (
    ("ingredients", "numerics"),
    ("ingredients", "torch"),
    ("ingredients", "device"),
    ("ingredients", "corpus"),
    ("hardware", "processor"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial(Entry):
    """A trial with its records. `values[key]` = (rows, numbers): which probe lines have the key, and its numbers.

    `doublings`: the domains in the changes from t/2 to t; None where the run has not recorded them.
    """

    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    probe_steps: np.ndarray = field(default_factory=lambda: np.empty(0))
    probe_tokens: np.ndarray = field(default_factory=lambda: np.empty(0))
    values: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    doublings: Doublings | None = None

    @property
    def warmup(self) -> int | None:
        """Steps of warm-up of the learning rate; None where the configuration has none."""
        return int((self.config.get("optim") or {}).get("warmup") or 0) or None

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps, tokens, numbers) of one instrument, empty when the run has not recorded it."""
        rows, numbers = self.values.get(key, (np.empty(0, dtype=np.int64), np.empty(0)))
        return self.probe_steps[rows], self.probe_tokens[rows], numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Study(Declaration):
    """A study with the records of its trials. `folder` holds its study.json."""

    folder: Path
    trials: tuple[Trial, ...]
    imported: tuple[Imported, ...] = ()  # curves of other people's runs, never paired

    @property
    def baseline(self) -> Arm:
        return next(arm for arm in self.arms if arm.role == "baseline")

    def of(self, arm: str, size: str | None = None) -> Iterator[Trial]:
        """The finished trials of an arm, at one size or all."""
        return (t for t in self._finished if t.arm == arm and size in (None, t.size))

    @cached_property
    def _finished(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.finished)

    @cached_property
    def _cells(self) -> dict[tuple[str, str], list[tuple[int, Trial]]]:
        cells: dict[tuple[str, str], list[tuple[int, Trial]]] = {}
        place = {seed: i for i, seed in enumerate(self.seeds)}
        for t in self._finished:
            cells.setdefault((t.arm, t.size), []).append((place[t.seed], t))
        return cells

    def grid(self, arm: str, measure: Callable[[Trial], float | None]) -> np.ndarray:
        """measure of each finished trial of an arm, (S, n) as sizes and seeds are ordered; nan where none."""
        table = np.full((len(self.sizes), len(self.seeds)), np.nan)
        for s, size in enumerate(self.sizes):
            for i, trial in self._cells.get((arm, size), ()):
                value = measure(trial)
                table[s, i] = np.nan if value is None else value
        return table


def find_study(results: str | Path, name: str | None = None) -> Path:
    """The folder of the study called `name`, or of the newest one. ValueError lists what there is.

    A damaged study.json stops nobody who asks for another study.
    """
    root = Path(results) / "studies"
    found: dict[Path, dict[str, Any]] = {}
    damaged: dict[str, str] = {}
    for path in sorted(root.glob("*/study.json")):
        try:
            found[path.parent] = read_json(path)
        except ValueError as error:
            damaged[path.parent.name] = str(error)
    if name in damaged or (damaged and not found):
        raise ValueError(damaged.get(name or "") or next(iter(damaged.values())))
    if not found:
        raise ValueError(f"{results}: no study here (there is no studies/*/study.json)")
    if name is None:
        return max(found, key=lambda folder: (str(found[folder].get("created", "")), folder.name))
    for folder, declaration in found.items():
        if name in (declaration.get("name"), folder.name):
            return folder
    names = ", ".join(sorted(str(d.get("name", f.name)) for f, d in found.items()))
    raise ValueError(f"{results}: no study {name!r}; there are: {names}")


def place_of(word: str, results: Path) -> tuple[Path, str | None]:
    """(results folder, study's name) of a results folder, whose newest study is meant, of a study's folder, or of the
    name of a study in `results`. ValueError where it is none of them."""
    path = Path(word)
    if (path / FILE).is_file():
        return path.resolve().parents[1], path.resolve().name
    if path.is_dir():
        return path, None
    try:
        return results, find_study(results, word).name
    except ValueError as error:
        raise ValueError(f"{word}: no folder, and {error}") from None


def load_study(results: str | Path, name: str | None = None) -> Study:
    """A study with the records of its trials."""
    folder = find_study(results, name)
    declared = Declaration.read(folder)
    parts = {f.name: getattr(declared, f.name) for f in fields(Declaration)}
    trials = tuple(load_trial(Path(results), t) for t in declared.trials)
    study = Study(**parts | {"folder": folder, "trials": trials, "imported": read_imported(folder)})
    _check(study, folder / FILE)
    return one_environment(in_order(study))


def _check(study: Study, path: Path) -> None:
    roles = Counter(arm.role for arm in study.arms)
    if roles["baseline"] != 1:
        raise ValueError(f"{path}: needs exactly one arm with the role baseline, has {roles['baseline']}")
    names = {arm.name for arm in study.arms}
    if strange := {name for pair in study.contrasts.items() for name in pair} - names:
        raise ValueError(f"{path}: contrasts names {sorted(strange)[0]!r}, which is none of its arms")
    looks, seeds = list(study.looks), len(study.seeds)
    if looks and (looks != sorted(set(looks)) or looks[0] < 1 or seeds not in looks):
        raise ValueError(f"{path}: looks {looks} must increase, and one of them be at its {seeds} seeds")
    for (arm, size, seed), times in Counter((t.arm, t.size, t.seed) for t in study.trials).items():
        if times > 1 or arm not in names or size not in study.sizes or seed not in study.seeds:
            why = f"stands in it {times} times" if times > 1 else "is none of its arms, sizes and seeds"
            raise ValueError(f"{path}: trial {arm!r} {size!r} {seed} {why}")


def in_order(study: Study) -> Study:
    """Trials as arms, sizes and seeds are ordered: no sum depends on which trial was done first."""
    arms = [arm.name for arm in study.arms]

    def place(trial: Trial) -> tuple[int, int, int]:
        return arms.index(trial.arm), study.sizes.index(trial.size), study.seeds.index(trial.seed)

    return replace(study, trials=tuple(sorted(study.trials, key=place)))


def load_trial(results: Path, entry: Entry) -> Trial:
    """One trial from the ledger; whatever is wrong with its folder becomes its error."""
    trial = Trial(**{f.name: getattr(entry, f.name) for f in fields(Entry)})
    folder = results / "trials" / trial.identity
    if not IDENTITY.fullmatch(trial.identity) or not folder.is_dir():
        gone = trial.finished
        return replace(trial, status="failed", error="its records are gone from the ledger") if gone else trial
    try:
        run = read_run(folder)
        _plausible_config(run)
        steps, tokens, values = numbers_of(run.probes)
        changes = doublings(run.probes, folder / "probes.jsonl")
        if run.status in ("finished", "paused"):
            _plausible(run, steps, tokens, values)
        if run.status == "finished":
            _whole(run, steps, values)
        if "records" in run.manifest and (damage := fault(run)):
            raise ValueError(f"{damage}; the command of the sweep trains it again")
    except (ValueError, OSError) as error:
        return replace(trial, status="failed", error=str(error), folder=folder)
    # The run knows better than the study whether it is done; why it was given up the study knows.
    done = run.status in (*OVER, "paused") or trial.status in ("finished", "paused")
    why = str(run.manifest.get("error") or last_line(folder / "steps.jsonl").get("diverged") or "")
    if run.status == "paused":
        why = f"at step {(run.manifest.get('totals') or {}).get('steps')} of {run.config['train']['steps']}"
    return replace(
        trial,
        status=run.status if done else trial.status,
        error=trial.error or why,
        folder=folder,
        config=run.config,
        manifest=run.manifest,
        probe_steps=steps,
        probe_tokens=tokens,
        values=values,
        doublings=changes,
    )


def _plausible_config(run: Run) -> None:
    """ValueError for a model or optimizer that none could have: parameters are counted from it, the warm-up read."""
    try:
        Config(model=run.config["model"], optim=run.config["optim"])
    except ValueError as error:
        raise ValueError(f"{run.folder / 'config.json'}: {error}") from None


def _plausible(
    run: Run, steps: np.ndarray, tokens: np.ndarray, values: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """ValueError for tokens or a held-out loss that cannot be: everything is computed from their logarithms."""
    if (np.diff(tokens, prepend=-1) <= 0).any() or tokens.max(initial=0) > MOST_TOKENS:
        raise ValueError(f"{run.folder / 'probes.jsonl'}: tokens must increase with the steps, up to {MOST_TOKENS:g}")
    rows, losses = values.get("heldout_loss", (np.empty(0, dtype=np.int32), np.empty(0)))
    for row, loss in zip(rows, losses, strict=True):
        if not 0 < loss < LARGEST_LOSS:
            where = f"{run.folder / 'probes.jsonl'}: step {steps[row]:g}"
            raise ValueError(f"{where}: held-out loss {loss:g} is no loss in nats per token (0 to {LARGEST_LOSS:g})")


def _whole(run: Run, steps: np.ndarray, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """ValueError where the records of a finished run stop before its end: one such trial would move the T of all."""
    if not ("heldout_loss" in values and steps[-1] > 0):
        raise ValueError(f"{run.folder / 'probes.jsonl'}: no held-out loss of a trained model")
    wanted = run.manifest.get("totals", {}).get("steps")
    ends = {"probes": steps[values["heldout_loss"][0][-1]], "steps": last_line(run.folder / "steps.jsonl").get("step")}
    for name, end in ends.items():
        if wanted is not None and end is not None and end < wanted:
            path = run.folder / f"{name}.jsonl"
            raise ValueError(f"{path}: ends at step {end:g} of {wanted}, the file was cut short")


def numbers_of(
    probes: list[dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """(steps, tokens, {dotted key: (rows, numbers)}) of probe lines; null is left out."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row, line in enumerate(probes):
        for key, value in numbers(line, "."):
            places, known = found.setdefault(key, ([], []))
            places.append(row)
            known.append(value)
    values = {k: (np.array(r, dtype=np.int32), np.array(v, dtype=np.float64)) for k, (r, v) in found.items()}
    empty = np.empty(0, dtype=np.int32), np.empty(0)
    (_, steps), (rows, tokens) = values.pop("step", empty), values.pop("tokens", empty)
    if len(rows) != len(probes):
        raise ValueError("a probe line has no number of tokens")
    return steps, tokens, values


def environment(trial: Trial) -> dict[str, str]:
    """Machine and versions that decide a trial's numbers, as far as its manifest tells."""
    parts = {key: (trial.manifest.get(part) or {}).get(key) for part, key in ENVIRONMENT}
    return {key: str(value) for key, value in parts.items() if value is not None}


def moved(trial: Trial) -> str:
    """Of a trial that went on in another environment, in words where it trained; empty for any other."""
    earlier = trial.manifest.get("earlier") or []
    for part, key in ENVIRONMENT:
        values = [(found.get(part) or {}).get(key) for found in (*earlier, trial.manifest)]
        known = list(dict.fromkeys(str(value) for value in values if value is not None))
        if len(known) > 1:
            return f"{key} {' and '.join(known)}"
    return ""


def one_environment(study: Study) -> Study:
    """The study with the trials of any but the most common environment, or of more than one, marked as failed."""
    counts = Counter(tuple(environment(t).items()) for t in study.trials if t.finished and not moved(t))
    if len(counts) < 2 and not any(map(moved, study.trials)):
        return study
    usual = counts.most_common(1)[0][0] if counts else ()

    def sort_out(trial: Trial) -> Trial:
        other, places = environment(trial), moved(trial)
        if not trial.finished or (not places and tuple(other.items()) == usual):
            return trial
        if places:
            why = f"trained in part elsewhere: {places}; move trials/{trial.identity} away to train it anew"
            return replace(trial, status="failed", error=f"not comparable, {why}")
        differs = ", ".join(f"{k} {other.get(k)} (others: {v})" for k, v in usual if other.get(k) != v)
        return replace(trial, status="failed", error=f"not comparable, ran elsewhere: {differs or other}")

    return replace(study, trials=tuple(map(sort_out, study.trials)))
