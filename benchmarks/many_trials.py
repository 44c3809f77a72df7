"""What a sweep costs beside training when its results folder holds very many trials.

    python -m benchmarks.many_trials [--finished 10000] [--pending 100] [--read | --report] [--json]

A study is planned as `zslx sweep` plans it, and all of its trials but `pending` are written as finished, with simulated
records: those of a few runs, hard links of which stand for the others, so that every byte is read but the disk holds a
fraction. Then a fresh process plans the same study again. `plan` is everything that the command does before it trains;
`record` writes study.json, as it does before and after training; `log` looks at what wandb has of each trial, after.
`--read`: its records are read as a comparison reads them; `--report`: it is compared and reported, too. Memory is the
most that the process has taken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.simulation.study import ENVIRONMENT, SimulatedArm, write_study
from zslx.runs.integrity import checksums
from zslx.runs.json_files import read_json

MOST_SEEDS = 1000
SIZES = 3  # of the preset
WRITTEN = 10  # runs of each size that are written; the others share their files


def arguments(trials: int, results: Path, steps: int) -> list[str]:
    """The words of a sweep of about so many trials: the baseline, and focal at as many strengths as it takes."""
    arms = max(2, -(-trials // (SIZES * MOST_SEEDS)))
    seeds = -(-trials // (SIZES * arms))
    gammas = ",".join(str(round(0.1 * i, 1)) for i in range(1, arms))
    words = ["focal", "--seeds", str(seeds), "--steps", str(steps), "--results", str(results)]
    return [*words, "--set", f"focal.gamma={gammas}", "--wandb", "off", "--slots", "2"]


def parsed(words: list[str]) -> argparse.Namespace:
    from sweeps.arguments import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def make(words: list[str], pending: int, steps: int) -> None:
    """Write the trials of the sweep that these words plan, but for `pending` of them."""
    from sweeps import study_file
    from sweeps.commands import study_of

    args = study_file.with_file(parsed(words))
    study = study_of(args)
    folder = args.results / "trials"
    with tempfile.TemporaryDirectory(dir=args.results.parent) as name:
        arms = [SimulatedArm(name="baseline", role="baseline"), SimulatedArm(name="focal", effect=-0.01)]
        write_study(name, np.random.default_rng(0), arms=arms, sizes=study.sizes, seeds=WRITTEN, steps=steps)
        written = read_json(Path(name) / "studies/study-0/study.json")["trials"]
        sources = {(t["arm"], t["size"], t["seed"]): Path(name) / "trials" / t["identity"] for t in written}
        kept = {source: checksums(source) for source in sources.values()}
        manifests = {source: read_json(source / "manifest.json") for source in sources.values()}
        for trial in study.trials[: len(study.trials) - pending]:
            kind = "baseline" if trial.arm == "baseline" else "focal"
            source, target = sources[kind, trial.size, trial.seed % WRITTEN], folder / trial.key
            target.mkdir(parents=True)
            for file in source.glob("*.jsonl"):
                os.link(file, target / file.name)
            (target / "config.json").write_text(json.dumps(trial.config.to_dict()))
            about = {"identity": trial.identity, "ingredients": ENVIRONMENT["ingredients"], "records": kept[source]}
            (target / "manifest.json").write_text(json.dumps(manifests[source] | about))


def measure(words: list[str], read: bool, report: bool) -> dict[str, Any]:
    """Seconds of each part, in this process, and the most memory that it took."""
    from analysis.commands import report as reporting
    from analysis.study.load import load_study
    from analysis.study.measures import Measures
    from sweeps.carry_out import Sweep, log_rest
    from sweeps.commands import planned

    row: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        row[name] = round(time.perf_counter() - start, 1)
        row[f"GiB after {name}"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        return found

    sweep = timed("plan", lambda: planned(parsed(words)))
    assert isinstance(sweep, Sweep)
    row |= {"finished": len(sweep.done), "pending": len(sweep.pending)}
    timed("record", lambda: sweep.ledger.record(sweep.study))
    timed("log", lambda: log_rest(sweep))
    results = sweep.ledger.results
    if read or report:
        timed("read", lambda: Measures(load_study(results)))
    if report:
        where = argparse.Namespace(studies=[str(results)], results=results, study=sweep.study.name, out=None)
        timed("report", lambda: reporting.run(where))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--pending", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        words = arguments(args.finished + args.pending, Path(name) / "results", args.steps)
        make(words, args.pending, args.steps)
        asked = f"{words!r}, {args.read}, {args.report}"
        code = f"import json, benchmarks.many_trials as b; print(json.dumps(b.measure({asked})))"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    if args.json:
        print(json.dumps(row))
        return
    print("| finished | pending | part | seconds | memory so far (GiB) |\n|---|---|---|---|---|")
    for part in [key for key in row if f"GiB after {key}" in row]:
        print(f"| {row['finished']} | {row['pending']} | {part} | {row[part]} | {row[f'GiB after {part}']} |")


if __name__ == "__main__":
    main()
