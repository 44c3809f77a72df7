"""The `zslx sweep` command: plan a study, train what the ledger does not have, compare, report.

    plan       refuse what is misspelt; prepare the text; identities; what the ledger has
    train      the rest, as Ray Tune trials (sweeps/tune.py; Ray is not imported when there is nothing to train)
    answer     the table, one line that says what was found, the HTML report, and its path, last and alone on a line

The exit code is 0 even where a trial diverged, which is a result; 1 where a trial failed; 2 for a mistake in the
command; 130 after Ctrl-C and 143 after SIGTERM. The same command always goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.commands import report
from analysis.inference.compare import decided
from analysis.study.arm import rate_factor
from analysis.study.load import load_study
from analysis.study.measures import Measures
from sweeps import arm_search, search, search_storage, study_file, tune_rate, wandb_log
from sweeps.arms import BASELINE_ARM
from sweeps.estimate import Estimate, estimate, study_seconds
from sweeps.ledger import Ledger, is_done
from sweeps.outcome import Failure, Outcome
from sweeps.packing import checked, packs
from sweeps.planned import PlannedTrial
from sweeps.progress import Progress
from sweeps.rounds import rounds
from sweeps.study import PlannedStudy, build, command, parse_seeds, split_pair
from sweeps.trial import Job
from zslx.config.presets import preset
from zslx.config.run_config import once, override
from zslx.config.sizes import model_preset
from zslx.config.spec import one_spelling
from zslx.intervention import registry
from zslx.intervention.discovery import plugin_folders
from zslx.printable import one_line, printable
from zslx.progress import duration
from zslx.text import token_cache

MOST_NAMES = 8  # of arms in one line
LONG = 1200.0  # seconds: above this estimate a sweep says first that it can be interrupted


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A planned study, its results folder, and what is left to train."""

    study: PlannedStudy
    ledger: Ledger
    done: list[PlannedTrial]
    pending: list[PlannedTrial]
    estimate: Estimate
    slots: int
    wandb: str
    tensorboard: bool = False
    again: str = ""  # the command that was given, where it asks for more than this study: a tuning, then a comparison

    @cached_property
    def baselines(self) -> dict[tuple[str, int], str]:
        """The keys of the baseline's trials, by size and seed."""
        return {(t.size, t.seed): t.key for t in self.study.trials if t.arm == BASELINE_ARM}

    def seconds(self) -> float:
        return study_seconds([map(self.estimate.seconds, some) for some in rounds(self.pending)], self.slots)


def run(args: argparse.Namespace) -> int:
    if args.write_study:
        return write_study(study_file.with_file(args))
    sweep = planned(args)
    return sweep if isinstance(sweep, int) else start(sweep, args)


def write_study(args: argparse.Namespace) -> int:
    """Write the study file that says what the command line says, after planning it."""
    if args.search is not None:
        raise ValueError("--write-study: a study file cannot ask for a search; give --search beside the file")
    asked = ask(args)
    study = study_of(args)
    study_file.of(args, asked.specs, asked.sizes, asked.seeds).write(args.write_study)
    say(f"{args.write_study} plans {len(study.in_order)} trials of {len(study.arms)} arms; train and compare them with")
    say(f"  zslx sweep {shlex.quote(str(args.write_study))}")
    return 0


def planned(args: argparse.Namespace) -> Sweep | int:
    """What is to be trained and compared; the exit code where a tuning before it came to no end."""
    args = study_file.with_file(args)
    if args.tune_rate and args.search is not None:
        raise ValueError("SEARCH tunes the learning rates, too, and TUNE_RATE does so at each size: give one of them")
    if args.search is not None:
        return searched(args, arm_search.checked(args.search))
    return tuned(args) if args.tune_rate else plan(args)


def searched(args: argparse.Namespace, points: int) -> Sweep | int:
    """Search the settings of each arm, in rounds; then plan the comparison."""
    asked = ask(args)
    looked = search.Search(
        asked.specs,
        args.preset,
        points,
        sizes=asked.sizes,
        overrides=asked.overrides,
        pack=args.pack,
        results=args.results,
    )
    for line in looked.announce():
        say(line)
    again, number = given(args, {"points": points}), 0
    while study := looked.ask():
        number += 1
        sweep = dataclasses.replace(sweep_of(study, args), again=again)
        if args.dry_run:
            say("its first round:")
            return start(sweep, args)
        say(f"search, round {number} of {looked.count}")
        check_writable(sweep.ledger.results)
        code = guarded(sweep, train_only)
        if code > 1:  # stopped; a point whose trials failed is left out
            return code
        looked.tell(load_study(args.results, study.name))
        if wrong := search_storage.keep(args.results, looked.studies()):
            say(f"note: {wrong}")
    for line in looked.describe():
        say(line)
    sizes = asked.sizes or preset(args.preset).sizes
    rates = {arm: dict.fromkeys(sizes, factor) for arm, factor in looked.rates.items()}
    return plan(args, rates, looked.summary(), looked.settings)


def tuned(args: argparse.Namespace) -> Sweep | int:
    """Tune the rates, on a grid that is extended while a best rate lies at its end; then plan the comparison."""
    factors = list(tune_rate.FACTORS)
    while True:
        asked = ask(args)
        study = tune_rate.tuning_study(
            asked.specs,
            args.preset,
            sizes=asked.sizes,
            overrides=asked.overrides,
            factors=factors,
            pack=args.pack,
            results=args.results,
        )
        sweep = dataclasses.replace(sweep_of(study, args), again=given(args, {"seeds": tune_rate.SEEDS}))
        if args.dry_run:
            say("the rates are tuned first:")
            return start(sweep, args)
        check_writable(sweep.ledger.results)
        code = guarded(sweep, train_only)
        if code:
            return code
        measures = tune_rate.load(args.results, study)
        rates, losses = tune_rate.best_rates(study, measures, factors)
        longer = tune_rate.wider(factors, rates)
        if longer == factors:
            break
        factors = longer
        say("a best rate lies at an end of the grid: one more rate there")
    for line in tune_rate.describe(rates, study.trials):
        say(line)
    return plan(args, rates, tune_rate.summary(study, measures, losses))


def given(args: argparse.Namespace, tuning: dict[str, Any]) -> str:
    """The command line as `make` takes it, with the tuning that it asks for."""
    return command(study_of(args, tuning=tuning), str(args.results))


def start(sweep: Sweep, args: argparse.Namespace) -> int:
    """Train and compare, or say what would be done."""
    if args.dry_run:
        for line in dry_run(sweep):
            say(line)
        return 0
    check_writable(sweep.ledger.results)
    return guarded(sweep, carry_out)


def guarded(sweep: Sweep, work: Callable[[Sweep], int]) -> int:
    """Do the work; say after Ctrl-C or a full disk how to go on."""
    try:
        return work(sweep)
    except KeyboardInterrupt:
        return interrupted(sweep)
    except OSError as error:
        place = f"RESULTS={sweep.ledger.results}"
        raise ValueError(f"{place}: {error}; what is finished is kept, and the same command goes on") from error


def say(text: str) -> None:
    """Print one line, at once; names in it may hold escape sequences."""
    print(printable(text), flush=True)


def carry_out(sweep: Sweep) -> int:
    """Train what is left and say what came of it; returns the exit code."""
    code = train_until_decided(sweep) if sweep.study.looks else train_only(sweep)
    results = sweep.ledger.results
    report.run(argparse.Namespace(studies=[str(results)], results=results, study=sweep.study.name, out=None))
    return code


def train_until_decided(sweep: Sweep) -> int:
    """Train the seeds of one look after the other, as long as some arm that is asked about has no answer yet."""
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


def counts(sweep: Sweep, outcome: Outcome) -> str:
    """How many trials this sweep trained, found finished at its start, and left to another sweep."""
    elsewhere = len(sweep.pending) - len(outcome.trained) - len(outcome.failures)
    meanwhile = f", {elsewhere} finished meanwhile by another sweep" if elsewhere else ""
    return f"{len(outcome.trained)} trained, {len(sweep.done)} finished before{meanwhile}"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, checked."""

    specs: tuple[str, ...]
    sizes: list[str]
    seeds: tuple[int, ...]
    overrides: list[str]


def ask(args: argparse.Namespace) -> Asked:
    """Check everything that the command line asks for, and prepare the text."""
    asked = tuple(dict.fromkeys(one_spelling(spec) for spec in args.intervention.split(",") if spec.strip()))
    if not asked:
        raise ValueError("name an intervention, as in INTERVENTION=pcgrad (zslx interventions list)")
    for spec in asked:
        if rate_factor(spec) is None:
            registry.resolve(spec)
    preset(args.preset)
    sizes = args.sizes.replace(",", " ").split()
    for size in sizes:
        model_preset(size)
    overrides = args.set + ([f"train.steps={args.steps}"] if args.steps is not None else [])
    settings = dict(once(split_pair(item) for item in overrides))
    seeds = parse_seeds(args.seeds)
    checked(args.pack)
    if args.slots is not None and args.slots < 1:
        raise ValueError(f"--slots {args.slots}: at least 1")
    prepare_text(args.preset, settings)
    return Asked(asked, sizes, seeds, overrides)


def plan(
    args: argparse.Namespace,
    rates: tune_rate.Rates | None = None,
    tuning: dict[str, Any] | None = None,
    settings: dict[str, arm_search.Settings] | None = None,
) -> Sweep:
    """The sweep that a command line asks for, at the rates and settings that were found for its arms."""
    return sweep_of(study_of(args, rates, tuning, settings), args)


def study_of(
    args: argparse.Namespace,
    rates: tune_rate.Rates | None = None,
    tuning: dict[str, Any] | None = None,
    settings: dict[str, arm_search.Settings] | None = None,
) -> PlannedStudy:
    """The study that a command line asks for."""
    asked = ask(args)
    return build(
        asked.specs,
        args.preset,
        sizes=asked.sizes,
        seeds=asked.seeds,
        overrides=asked.overrides,
        rates=rates,
        settings=settings,
        tuning=tuning,
        contrasts=args.contrasts,
        curve=args.curve,
        file=args.file,
        until=args.until,
        pack=args.pack,
        results=args.results,
    )


def sweep_of(study: PlannedStudy, args: argparse.Namespace) -> Sweep:
    """A study with what the ledger has of it and the time that the rest takes."""
    ledger = Ledger(args.results)
    done, pending = ledger.split(study.in_order)
    # A reference run that is gone is not trained again for trials that are done.
    extra, needed = ({t.key for t in study.references}, {t.reference.key for t in pending if t.reference})
    pending = [trial for trial in pending if trial.key in needed or trial.key not in extra]
    threads = max(trial.config.train.threads for trial in study.trials)
    together = max((len(packs(some, study.pack)) for some in rounds(pending)), default=1)
    return Sweep(
        study=study,
        ledger=ledger,
        done=done,
        pending=pending,
        estimate=estimate(pending, args.results),
        slots=max(1, min(args.slots or cores() // threads, together)),
        wandb=args.wandb,
        tensorboard=args.tensorboard,
    )


def prepare_text(preset_name: str, settings: dict[str, str]) -> None:
    """Tokenise the text once, here, where its progress shows: trials then find it in the cache."""
    data = {key: value for key, value in settings.items() if key.partition(".")[0] == "data"}
    config = override(preset(preset_name).config, data.items())
    token_cache.corpus_of(config.data)


def cores() -> int:
    """CPU cores that this process may use, limited by a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


def check_writable(results: Path) -> None:
    """Refuse a results folder that cannot be written before anything is trained."""
    probe = results / f".write-{os.getpid()}"
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"RESULTS={results} cannot be written: {error.strerror or error}") from None


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
        f"{len(sweep.pending)} trials to train{before}{together}, {sweep.slots} at a time: about {duration(seconds)} "
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
        lines.append(f"looks  after {', '.join(map(str, study.looks))} seeds; it stops after the first with an answer")
    lines.append("time, one core a trial")
    for size in study.sizes:
        own = [sweep.estimate.seconds(t) for t in sweep.pending if t.size == size]
        lines.append(f"  {size:6s} {len(own)} to train, {duration(sum(own)) if own else '0 s'}")
    total = duration(sweep.seconds()) if sweep.pending else "0 s"
    lines.append(f"in all about {total} with {sweep.slots} at a time (estimated from {sweep.estimate.source})")
    return lines


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
    with Progress(sweep.pending, total, sweep.ledger, sweep.estimate, sweep.slots) as progress:
        return train_all(jobs, progress, sweep.slots)


def job(sweep: Sweep, trial: PlannedTrial) -> Job:
    """The trial as it is sent to a worker."""
    return Job(
        config=trial.config.to_dict(),
        folder=str(sweep.ledger.folder(trial.key).absolute()),
        identity=trial.identity,
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
