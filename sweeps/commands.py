"""`zslx sweep`: plan a study, train what the ledger has not, compare, report.

    plan       refuse what is misspelt; prepare the text; identities; what the ledger has
    train      the rest, as Ray Tune trials (sweeps/tune.py; not even imported when there is nothing to train)
    answer     table, one line that says what was found, the HTML report, and its path last, alone on a line

Exit code 0, also where a trial diverged (that is a result); 1 where a trial failed; 2 for a mistake in the command;
130 after Ctrl-C. The same command always goes on where the last one was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import wandb_log
from zslx.printable import one_line

if TYPE_CHECKING:
    from sweeps.estimate import Estimate
    from sweeps.ledger import Ledger
    from sweeps.study import Study, Trial
    from sweeps.tune import Failure

LONG = 1200.0  # seconds: a sweep estimated longer says first how long, and that it resumes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from zslx.config.presets import PRESETS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Compare interventions with the baseline: arms × sizes × seeds, then the table and the report.\n\n"
        "examples:\n"
        "  zslx sweep pcgrad\n"
        "  zslx sweep pcgrad --preset smoke\n"
        "  zslx sweep pcgrad,ema --sizes '0.1M 0.2M' --seeds 5 --set 'pcgrad.groups=domain optim.lr=1e-3'\n"
        "  zslx sweep pcgrad --preset verdict --dry-run\n\n"
        "An interrupted sweep goes on when the same command is given again; no trial is trained twice."
    )
    parser.add_argument("intervention", metavar="INTERVENTION", help="a name, a+b for both at once, a,b to compare")
    presets = "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", default="laptop", help=presets)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of trials and reports")
    parser.add_argument("--sizes", default="", help="model sizes, as '0.1M 0.2M' (zslx presets lists them)")
    parser.add_argument("--seeds", default="", help="how many (3) or which ones ('0 1 2')")
    parser.add_argument("--steps", type=int, help="optimizer steps of each trial")
    parser.add_argument("--set", default="", metavar="K=V", help="settings, as 'pcgrad.groups=domain optim.lr=1e-3'")
    parser.add_argument("--wandb", default="offline", choices=wandb_log.MODES, help="default: offline, never asking")
    parser.add_argument("--slots", type=int, help="trials at a time (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and how long it takes")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A planned study in a results folder, and what is left of it to train."""

    study: Study
    ledger: Ledger
    done: list[Trial]
    pending: list[Trial]
    estimate: Estimate
    slots: int
    wandb: str

    @property
    def command(self) -> str:
        from sweeps.study import command

        return command(self.study, str(self.ledger.results))

    @property
    def verdict(self) -> str:
        from sweeps.study import command

        return command(self.study, str(self.ledger.results), preset="verdict")

    def seconds(self) -> float:
        from sweeps.estimate import study_seconds

        return study_seconds([self.estimate.seconds(trial) for trial in self.pending], self.slots)


def run(args: argparse.Namespace) -> int:
    sweep = plan(args)
    if args.dry_run:
        print(dry_run(sweep))
        return 0
    check_writable(sweep.ledger.results)
    try:
        return carry_out(sweep)
    except KeyboardInterrupt:
        return interrupted(sweep)
    except OSError as error:
        place = f"RESULTS={sweep.ledger.results}"
        raise ValueError(f"{place}: {error}; what is finished is kept, and the same command goes on") from error


def carry_out(sweep: Sweep) -> int:
    """Train what is left, say what came of it; returns the exit code."""
    record(sweep, {})
    announce(sweep)
    start = time.monotonic()
    notes: set[str] = set()
    failures = train(sweep, notes) if sweep.pending else {}
    notes |= log_rest(sweep)
    record(sweep, failures)
    trained = len(sweep.pending) - len(failures)
    print(f"{trained} trained, {len(sweep.done)} finished before, in {time.monotonic() - start:.0f} s")
    for note in sorted(notes):
        print(f"note: {note}")
    report_failures(sweep, failures)
    answer(sweep)
    return 1 if failures else 0


def plan(args: argparse.Namespace) -> Sweep:
    """Everything that the command line asks for, checked; the text prepared."""
    from zslx.config.presets import preset
    from zslx.config.run_config import one_spelling
    from zslx.config.sizes import model_preset
    from zslx.intervention import registry

    asked = tuple(dict.fromkeys(one_spelling(spec) for spec in args.intervention.split(",") if spec.strip()))
    if not asked:
        raise ValueError("name an intervention, as in INTERVENTION=pcgrad (zslx interventions list)")
    for spec in asked:
        registry.resolve(spec)
    from sweeps.study import build, parse_seeds, split_pair
    from zslx.config.run_config import once

    preset(args.preset)
    sizes = args.sizes.replace(",", " ").split()
    for size in sizes:
        model_preset(size)
    overrides = args.set.split() + ([f"train.steps={args.steps}"] if args.steps is not None else [])
    paths = dict(once(split_pair(item) for item in overrides))
    seeds = parse_seeds(args.seeds)
    if args.slots is not None and args.slots < 1:
        raise ValueError(f"--slots {args.slots}: at least 1")
    prepare_text(args.preset, paths)
    study = build(asked, args.preset, sizes=sizes, seeds=seeds, overrides=overrides)
    from sweeps.estimate import estimate
    from sweeps.ledger import Ledger

    ledger = Ledger(args.results)
    done, pending = ledger.split(study.trials)
    threads = max(trial.config.train.threads for trial in study.trials)
    return Sweep(
        study=study,
        ledger=ledger,
        done=done,
        pending=pending,
        estimate=estimate(pending, args.results),
        slots=args.slots or max(1, cores() // threads),
        wandb=args.wandb,
    )


def prepare_text(preset_name: str, values: dict[str, str]) -> None:
    """Tokenise the text once, here, where its progress shows: trials find it in the cache."""
    from zslx.config.presets import preset
    from zslx.config.run_config import override
    from zslx.text import token_cache

    data = {key: value for key, value in values.items() if key.startswith("data.")}
    config = override(preset(preset_name).config, data.items())
    token_cache.prepare(config.data.path, config.data.vocab_size)


def cores() -> int:
    """CPU cores that this process may use, a container's quota included."""
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
    """What is about to happen, and how long it takes."""
    from sweeps.estimate import duration

    study = sweep.study
    arms = ", ".join(arm.name for arm in study.arms)
    sizes, seeds = " ".join(study.sizes), " ".join(map(str, study.seeds))
    print(f"{study.name}: {arms}; sizes {sizes}; seeds {seeds}", flush=True)
    if not sweep.pending:
        return
    before = f", {len(sweep.done)} of {len(sweep.done) + len(sweep.pending)} finished before" if sweep.done else ""
    seconds = sweep.seconds()
    print(
        f"{len(sweep.pending)} trials to train{before}, {sweep.slots} at a time: about {duration(seconds)} "
        f"(estimated from {sweep.estimate.source})",
        flush=True,
    )
    if seconds > LONG:
        print("interrupt it when you like: the same command goes on where it was", flush=True)


def dry_run(sweep: Sweep) -> str:
    """What would be trained, what the ledger has, and the estimated time by size."""
    from sweeps.estimate import duration

    study, pending = sweep.study, {trial.key for trial in sweep.pending}
    lines = [f"study  {study.name}", f"arms   {', '.join(f'{a.name} ({a.role})' for a in study.arms)}", "trials"]
    for trial in study.trials:
        status = sweep.ledger.status(trial)
        left = f"about {duration(sweep.estimate.seconds(trial))}" if trial.key in pending else "nothing to do"
        lines.append(f"  {trial.label:32s} {trial.key}  {trial.steps} steps  {status:9s} {left}")
    lines.append("time, one core a trial")
    for size in study.sizes:
        own = [sweep.estimate.seconds(t) for t in sweep.pending if t.size == size]
        lines.append(f"  {size:6s} {len(own)} to train, {duration(sum(own)) if own else '0 s'}")
    total = duration(sweep.seconds()) if sweep.pending else "0 s"
    lines.append(f"in all about {total} with {sweep.slots} at a time (estimated from {sweep.estimate.source})")
    return "\n".join(lines)


def train(sweep: Sweep, notes: set[str]) -> dict[str, Failure]:
    """Train what is pending; returns the failures by the trials' keys."""
    from sweeps.progress import Progress
    from sweeps.trial import Job
    from sweeps.tune import train_all

    # Workers start elsewhere: places become absolute.
    os.environ["ZSLX_PLUGINS"] = os.pathsep.join(str(folder) for folder in plugin_folders())
    jobs = [
        (
            trial,
            Job(
                config=trial.config.to_dict(),
                folder=str(sweep.ledger.folder(trial.key).absolute()),
                identity=trial.identity,
                working_directory=os.getcwd(),
                labels=labels(sweep, trial),
                wandb=sweep.wandb,
            ),
        )
        for trial in sweep.pending
    ]
    total = len(sweep.pending) + len(sweep.done)
    print("starting Ray ...", file=sys.stderr, flush=True)
    with Progress(sweep.pending, total, sweep.ledger, sweep.estimate, sweep.slots) as progress:
        return train_all(jobs, progress, sweep.slots, notes)


def plugin_folders() -> Sequence[Path]:
    from zslx.intervention.discovery import plugin_folders

    return plugin_folders()


def labels(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    place = {"results": str(sweep.ledger.results.absolute()), "study": sweep.study.name}
    return place | {"arm": trial.arm, "size": trial.size, "seed": trial.seed}


def log_rest(sweep: Sweep) -> set[str]:
    """Log to wandb the trials of this study that no sweep has logged yet."""
    from sweeps.ledger import is_done

    notes = set()
    for trial in sweep.study.trials:
        folder = sweep.ledger.folder(trial.key)
        if is_done(folder, trial.identity):
            wrong = wandb_log.log(folder, wandb_log.Labels(**labels(sweep, trial)), sweep.wandb)
            if wrong:
                notes.add(f"wandb could not log every trial ({wrong}); the records have everything")
                break
    wandb_log.close()
    return notes


def record(sweep: Sweep, failures: dict[str, Failure]) -> None:
    """study.json with the state of each trial, and the tracebacks of those that failed."""
    from sweeps.ledger import write_study

    folder = sweep.ledger.results / "studies" / sweep.study.name
    statuses = []
    for trial in sweep.study.trials:
        failure = failures.get(trial.key)
        status = sweep.ledger.status(trial)
        entry = {"arm": trial.arm, "size": trial.size, "seed": trial.seed, "identity": trial.key}
        if failure:
            entry |= {"status": "failed", "error": failure.error}
        else:
            entry |= {"status": status if status in ("finished", "diverged") else "waiting"}
        statuses.append(entry)
        if failure and failure.details:
            path = folder / "errors" / f"{trial.key}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(failure.details)
    write_study(sweep.study, sweep.ledger.results, statuses, sweep.command, sweep.verdict)


def report_failures(sweep: Sweep, failures: dict[str, Failure]) -> None:
    """Which trials failed and why, errors that are the same told once."""
    if not failures:
        return
    by_error: dict[str, list[Trial]] = {}
    for trial in sweep.pending:
        if trial.key in failures:
            by_error.setdefault(failures[trial.key].error, []).append(trial)
    folder = sweep.ledger.results / "studies" / sweep.study.name / "errors"
    for error, failed in by_error.items():
        names = ", ".join(trial.label for trial in failed[:4]) + (", ..." if len(failed) > 4 else "")
        print(one_line(f"failed: {len(failed)} of {len(sweep.study.trials)} trials ({names}): {error}"))
        if (path := folder / f"{failed[0].key}.txt").exists():
            print(f"        traceback in {path}")


def interrupted(sweep: Sweep) -> int:
    """After Ctrl-C: what is kept and how to go on."""
    done, _ = sweep.ledger.split(sweep.study.trials)
    record(sweep, {})
    unique = len({trial.key for trial in sweep.study.trials})
    print(f"\nstopped: {len(done)} of {unique} trials are finished, and the others keep their checkpoints; go on with")
    print(f"  {sweep.command}", flush=True)
    return 130


def answer(sweep: Sweep) -> None:
    """The table, the line that says what was found, and the report's path, last and alone on its line."""
    from analysis.commands import report

    report.run(argparse.Namespace(results=sweep.ledger.results, study=sweep.study.name, out=None))
