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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.study.arm import UNTUNED, sets_rate
from analysis.study.measures import Measures
from sweeps import arm_search, cluster, search, search_storage, study_file, tune_rate
from sweeps.carry_out import Sweep, carry_out, check_writable, dry_run, guarded, say, train_only
from sweeps.estimate import estimate
from sweeps.ledger import Ledger
from sweeps.packing import checked, cores_of, packs
from sweeps.rounds import rounds
from sweeps.study import PlannedStudy, build, command, parse_seeds, split_pair
from zslx.config.presets import preset
from zslx.config.run_config import once, override
from zslx.config.sizes import model_preset
from zslx.config.spec import one_spelling
from zslx.intervention import registry
from zslx.text import token_cache


def run(args: argparse.Namespace) -> int:
    if args.write_study:
        return write_study(study_file.with_file(args))
    sweep = planned(args)
    return sweep if isinstance(sweep, int) else start(sweep, args)


def write_study(args: argparse.Namespace) -> int:
    """Write the study file that says what the command line says, after planning it."""
    check_tuning(args)
    asked = ask(args)
    study = study_of(args)
    study_file.of(args, asked.specs, asked.sizes, asked.seeds).write(args.write_study)
    say(f"{args.write_study} plans {len(study.in_order)} trials of {len(study.arms)} arms; train and compare them with")
    say(f"  zslx sweep {shlex.quote(str(args.write_study))}")
    return 0


def planned(args: argparse.Namespace) -> Sweep | int:
    """What is to be trained and compared; the exit code where a tuning before it came to no end."""
    args = study_file.with_file(args)
    check_tuning(args)
    if args.search is not None:
        return searched(args, args.search)
    return tuned(args) if args.tune_rate else plan(args)


def check_tuning(args: argparse.Namespace) -> None:
    """ValueError for a tuning that cannot be, and for the baseline before a tuning that is not asked for."""
    if UNTUNED in map(str.strip, args.intervention.split(",")) and not args.tune_rate and args.search is None:
        raise ValueError(f"{UNTUNED} is the baseline before its tuning: give TUNE_RATE=1 or SEARCH=N, too")
    tunes = args.tune_rate or args.search is not None
    if tunes and (shared := sorted(set(parse_seeds(args.seeds)) & set(tune_rate.SEEDS))):
        raise ValueError(
            f"SEEDS: {' '.join(map(str, shared))} would choose rates and settings, and then judge them: allowed are "
            f"all seeds but {' '.join(map(str, tune_rate.SEEDS))}"
        )
    if args.search is None:
        if args.halving:
            raise ValueError("HALVING cuts points of a search: give SEARCH=N, too")
        return
    arm_search.checked(args.search)
    if args.tune_rate:
        raise ValueError("SEARCH tunes the learning rates, too, and TUNE_RATE does so at each size: give one of them")


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
        halving=args.halving,
    )
    for line in looked.announce():
        say(line)
    again = given(args, {"points": points, "halving": args.halving})
    while study := looked.ask():
        say("its first round:" if args.dry_run else looked.heading)
        code = train_before(study, args, again)
        if args.dry_run or code > 1:  # stopped; a point whose trials failed is left out
            return code
        for line in looked.tell(tune_rate.load(args.results, study)):
            say(line)
        if looked.between_rounds and (wrong := search_storage.keep(args.results, looked.studies())):
            say(f"note: {wrong}")
    for line in looked.describe():
        say(line)
    sizes = asked.sizes or preset(args.preset).sizes
    rates = {arm: dict.fromkeys(sizes, factor) for arm, factor in looked.rates.items()}
    return plan(args, rates, looked.summary(), looked.settings)


def tuned(args: argparse.Namespace) -> Sweep | int:
    """Tune the rates, on grids that are extended while a best rate lies at an end; then plan the comparison."""
    grids: tune_rate.Grids = {}
    while True:
        asked = ask(args)
        study = tune_rate.tuning_study(
            asked.specs,
            args.preset,
            sizes=asked.sizes,
            overrides=asked.overrides,
            grids=grids,
            pack=args.pack,
            results=args.results,
        )
        if args.dry_run:
            say("the rates are tuned first:")
        code = train_before(study, args, given(args, {"seeds": tune_rate.SEEDS}))
        if args.dry_run or code:
            return code
        measures = Measures(tune_rate.load(args.results, study))
        rates, losses = tune_rate.best_rates(study, measures, grids)
        longer = tune_rate.wider(grids, rates)
        if longer == grids:
            break
        arms = ", ".join(arm for arm in longer if longer[arm] != grids.get(arm))
        say(f"the best rate lies at an end of the grid, and one more is tried there: {arms}")
        grids = longer
    for line in tune_rate.describe(rates, study.trials):
        say(line)
    return plan(args, rates, tune_rate.summary(study, measures, losses))


def given(args: argparse.Namespace, tuning: dict[str, Any]) -> str:
    """The command line as `make` takes it, with the tuning that it asks for."""
    return command(study_of(args, tuning=tuning), str(args.results))


def train_before(study: PlannedStudy, args: argparse.Namespace, again: str) -> int:
    """Train a study that comes before the comparison, or say what would be done; the exit code."""
    return start(dataclasses.replace(sweep_of(study, args), again=again), args, train_only)


def start(sweep: Sweep, args: argparse.Namespace, work: Callable[[Sweep], int] = carry_out) -> int:
    """Train and compare, or say what would be done."""
    if args.dry_run:
        for line in dry_run(sweep):
            say(line)
        return 0
    check_writable(sweep.ledger.results)
    return guarded(sweep, work)


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
        if not sets_rate(spec):
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
    each = max(cores_of(trial.config) for trial in study.trials)
    together = max((len(packs(some, study.pack)) for some in rounds(pending)), default=1)
    elsewhere = cluster.address() and not args.slots  # a cluster's cores are known when it is there
    return Sweep(
        study=study,
        ledger=ledger,
        done=done,
        pending=pending,
        estimate=estimate(pending, args.results),
        slots=None if elsewhere else max(1, min(args.slots or cores() // each, together)),
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
