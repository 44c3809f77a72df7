"""What a planned sweep does: train what the ledger does not have, log it, compare, report, and say so.

The trials train as Ray Tune trials (sweeps/tune.py; Ray is not imported when there is nothing to train). The exit code
is 0 even where a trial diverged, which is a result; 1 where a trial failed; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from analysis.commands import report
from analysis.inference.stopping import decided
from analysis.study.load import load_study
from analysis.study.measures import Measures
from sweeps import wandb_log
from sweeps.arms import BASELINE_ARM
from sweeps.estimate import Estimate, study_seconds
from sweeps.ledger import Ledger, is_done
from sweeps.outcome import Failure, Outcome
from sweeps.packing import packs
from sweeps.planned import PlannedTrial
from sweeps.progress import Progress
from sweeps.rounds import rounds
from sweeps.study import PlannedStudy, command
from sweeps.trial import Job
from zslx.places import plugin_folders
from zslx.printable import one_line, printable
from zslx.progress import duration

MOST_NAMES = 8  # of arms in one line
LONG = 1200.0  # seconds: above this estimate a sweep says first that it can be interrupted


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A planned study, its results folder, and what is left to train.

    slots: trials at a time; None for as many as a cluster has cores for.
    """

    study: PlannedStudy
    ledger: Ledger
    done: list[PlannedTrial]
    pending: list[PlannedTrial]
    estimate: Estimate
    slots: int | None
    wandb: str
    tensorboard: bool = False
    again: str = ""  # the command that was given, where it asks for more than this study: a tuning, then a comparison

    @cached_property
    def baselines(self) -> dict[tuple[str, int], str]:
        """The keys of the baseline's trials, by size and seed."""
        return {(t.size, t.seed): t.key for t in self.study.trials if t.arm == BASELINE_ARM}

    def seconds(self) -> float:
        """Wall time of what is left; where it is not known how many train at a time, on one core."""
        return study_seconds([map(self.estimate.seconds, some) for some in rounds(self.pending)], self.slots or 1)

    @property
    def at_a_time(self) -> str:
        return (
            f"{self.slots} at a time" if self.slots else "as many at a time as the cluster has cores for, on one core"
        )


def carry_out(sweep: Sweep) -> int:
    """Train what is left and say what came of it; returns the exit code."""
    code = train_until_decided(sweep) if sweep.study.looks else train_only(sweep)
    results = sweep.ledger.results
    asked = argparse.Namespace(studies=[str(results)], results=results, study=sweep.study.name, out=None)
    breaks, comparison, page = report.make(asked)
    if sweep.wandb != "off":
        from analysis.commands.to_wandb import log_run_of_study

        wrong = log_run_of_study(breaks, comparison, page, sweep.wandb)
        wandb_log.close()
        if wrong:
            say(f"note: {wrong}")
    print(page.resolve(), flush=True)
    return code


def train_until_decided(sweep: Sweep) -> int:
    """Train the seeds of one look after the other, as long as some arm that is asked about has no answer yet (or, in a
    study that may stop for futility, may still get one)."""
    study, wanted, code = sweep.study, {trial.key for trial in sweep.pending}, 0
    for number, seeds in enumerate(study.looks, 1):
        part = study.up_to(seeds)
        done, left = sweep.ledger.split(part.in_order)
        pending = [t for t in left if t.key in wanted]
        code = max(code, train_only(dataclasses.replace(sweep, study=part, done=done, pending=pending)))
        words = decided(Measures(load_study(sweep.ledger.results, study.name)))
        told = "; ".join(f"{arm}: {word or 'not decided'}" for arm, word in words.items())
        say(f"look {number} of {len(study.looks)}, after {seeds} of {len(study.seeds)} seeds: {told}")
        if words and all(words.values()):
            break
    return code


def train_only(sweep: Sweep) -> int:
    """Train what is left; returns 1 where a trial failed."""
    sweep.ledger.record(sweep.study)
    announce(sweep)
    began = time.monotonic()
    outcome = train(sweep) if sweep.pending else Outcome()
    outcome.notes |= log_rest(sweep)
    sweep.ledger.record(sweep.study, outcome.failures)
    say(f"{counts(sweep, outcome)}, in {time.monotonic() - began:.0f} s")
    for note in sorted(outcome.notes):
        say(f"note: {note}")
    report_failures(sweep, outcome.failures)
    return 1 if outcome.failures else 0


def train(sweep: Sweep) -> Outcome:
    """Train what is pending."""
    from sweeps.tune import train_all  # imports Ray, which takes seconds

    # Workers start in another folder: paths become absolute.
    os.environ["ZSLX_PLUGINS"] = os.pathsep.join(str(folder) for folder in plugin_folders())
    jobs = [
        [[(trial, job(sweep, trial)) for trial in pack] for pack in packs(together, sweep.study.pack)]
        for together in rounds(sweep.pending)
    ]
    total = len(sweep.pending) + len(sweep.done)
    print("starting Ray ...", file=sys.stderr, flush=True)
    with Progress(sweep.pending, total, sweep.ledger, sweep.estimate, sweep.slots or 1) as progress:
        return train_all(jobs, progress, sweep.slots)


def job(sweep: Sweep, trial: PlannedTrial) -> Job:
    """The trial as it is sent to a worker."""
    return Job(
        config=trial.config.to_dict(),
        folder=str(sweep.ledger.folder(trial.key).absolute()),
        identity=trial.identity,
        made_of=trial.made_of,
        packed=trial.packed,
        working_directory=os.getcwd(),
        labels=asdict(labels(sweep, trial)),
        wandb=sweep.wandb,
        tensorboard=sweep.tensorboard,
    )


def labels(sweep: Sweep, trial: PlannedTrial) -> wandb_log.Labels:
    results = str(sweep.ledger.results.absolute())
    partner = sweep.baselines.get((trial.size, trial.seed), "") if trial.arm != BASELINE_ARM else ""
    return wandb_log.Labels(
        results=results, study=sweep.study.name, arm=trial.arm, size=trial.size, seed=trial.seed, baseline=partner
    )


def log_rest(sweep: Sweep) -> set[str]:
    """Log the trials of this study that no sweep has logged whole yet; returns notes on what went wrong."""
    notes = set()
    for trial in sweep.study.in_order:
        folder = sweep.ledger.folder(trial.key)
        if is_done(folder, trial.identity):
            wrong = wandb_log.log(folder, labels(sweep, trial), sweep.wandb)
            if sweep.tensorboard:
                wrong = wandb_log.event_files(folder, labels(sweep, trial)) or wrong
            if wrong:
                notes.add(f"wandb or TensorBoard could not log every trial ({wrong}); the records have everything")
                break
    wandb_log.close()
    return notes


def guarded(sweep: Sweep, work: Callable[[Sweep], int]) -> int:
    """Do the work; say after Ctrl-C or a full disk how to go on."""
    try:
        return work(sweep)
    except KeyboardInterrupt:
        return interrupted(sweep)
    except OSError as error:
        place = f"RESULTS={sweep.ledger.results}"
        raise ValueError(f"{place}: {error}; what is finished is kept, and the same command goes on") from error


def check_writable(results: Path) -> None:
    """Refuse a results folder that cannot be written before anything is trained."""
    probe = results / f".write-{os.getpid()}"
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"RESULTS={results} cannot be written: {error.strerror or error}") from None


def interrupted(sweep: Sweep) -> int:
    """Say after Ctrl-C what is kept and how to go on."""
    trials = [*sweep.done, *sweep.pending]
    done, _ = sweep.ledger.split(trials)
    if not sweep.study.looks:  # study.json stands at the look that was being trained for
        sweep.ledger.record(sweep.study)
    print()
    say(f"stopped: {len(done)} of {len(trials)} trials are finished, and the others keep their checkpoints; go on with")
    say(f"  {sweep.again or command(sweep.study, str(sweep.ledger.results))}")
    return 130


def announce(sweep: Sweep) -> None:
    """Say what is about to happen, and how long it takes."""
    study = sweep.study
    names = [arm.name for arm in study.arms]
    arms = ", ".join(names[:MOST_NAMES]) + (f", ... ({len(names)} arms)" if len(names) > MOST_NAMES else "")
    sizes, seeds = " ".join(study.sizes), " ".join(map(str, study.seeds[: study.stage]))
    say(f"{study.name}: {arms}; sizes {sizes}; seeds {seeds}")
    if not sweep.pending:
        return
    before = f", {len(sweep.done)} of {len(sweep.done) + len(sweep.pending)} finished before" if sweep.done else ""
    seconds, first = sweep.seconds(), rounds(sweep.pending)
    workers = sum(len(packs(some, study.pack)) for some in first)
    together = f" in {workers} packs" if any(trial.packed for trial in sweep.pending) else ""
    say(
        f"{len(sweep.pending)} trials to train{before}{together}, {sweep.at_a_time}: about {duration(seconds)} "
        f"(estimated from {sweep.estimate.source})"
    )
    if len(first) > 1:
        say(f"first the reference runs that others of them need: {', '.join(trial.label for trial in first[0])}")
    if seconds > LONG:
        say("interrupt it when you like: the same command goes on where it was")


def dry_run(sweep: Sweep) -> list[str]:
    """Lines that say what would be trained, what the ledger has, and the estimated time by size."""
    study, pending = sweep.study, {trial.key for trial in sweep.pending}
    lines = [f"study  {study.name}", f"arms   {', '.join(f'{a.name} ({a.role})' for a in study.arms)}", "trials"]
    for trial in study.in_order:
        status = sweep.ledger.status(trial)
        left = f"about {duration(sweep.estimate.seconds(trial))}" if trial.key in pending else "nothing to do"
        lines.append(f"  {trial.label:32s} {trial.key}  {trial.steps} steps  {status:9s} {left}")
    if study.looks:
        futility = ", or with little hope of one" if study.futility else ""
        after = ", ".join(map(str, study.looks))
        lines.append(f"looks  after {after} seeds; it stops after the first with an answer{futility}")
    lines.append("time, one core a trial")
    for size in study.sizes:
        own = [sweep.estimate.seconds(t) for t in sweep.pending if t.size == size]
        lines.append(f"  {size:6s} {len(own)} to train, {duration(sum(own)) if own else '0 s'}")
    total = duration(sweep.seconds()) if sweep.pending else "0 s"
    lines.append(f"in all about {total}, {sweep.at_a_time} (estimated from {sweep.estimate.source})")
    return lines


def counts(sweep: Sweep, outcome: Outcome) -> str:
    """How many trials this sweep trained, found finished at its start, and left to another sweep."""
    elsewhere = len(sweep.pending) - len(outcome.trained) - len(outcome.failures)
    meanwhile = f", {elsewhere} finished meanwhile by another sweep" if elsewhere else ""
    return f"{len(outcome.trained)} trained, {len(sweep.done)} finished before{meanwhile}"


def report_failures(sweep: Sweep, failures: dict[str, Failure]) -> None:
    """Say which trials failed and why, each error once."""
    by_error: dict[str, list[PlannedTrial]] = {}
    for trial in sweep.pending:
        if trial.key in failures:
            by_error.setdefault(failures[trial.key].error, []).append(trial)
    for error, failed in by_error.items():
        names = ", ".join(trial.label for trial in failed[:4]) + (", ..." if len(failed) > 4 else "")
        say(one_line(f"failed: {len(failed)} of {len(sweep.study.in_order)} trials ({names}): {error}"))
        if (path := sweep.ledger.traceback(sweep.study, failed[0].key)).exists():
            say(f"        traceback in {path}")


def say(text: str) -> None:
    """Print one line, at once; names in it may hold escape sequences."""
    print(printable(text), flush=True)
