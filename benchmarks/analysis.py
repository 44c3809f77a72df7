"""How fast studies are read and compared, and how often the rule errs. Prints the tables of analysis.md.

    python -m benchmarks.analysis [--json] [--trials 10000] [--steps 2000] [--studies 500]

Reading: a results folder of 10,000 simulated trials (200 written, the others hard links to their files, so that
every byte is parsed but the disk holds a fiftieth), read by a fresh process: probes alone, which is what a
comparison needs, and with every step record, as the report does. Error rates: analysis/simulation/error_rates.py.
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
from pathlib import Path

import numpy as np

from analysis.simulation.error_rates import World, verdicts
from analysis.simulation.study import ARMS, write_study
from zslx.runs.json_files import read_json, write_json

WRITTEN_SEEDS = 10
SIZES = ("0.1M", "0.2M", "0.4M", "0.8M")
WORLDS = {
    "no effect": World(),
    "no effect, heavy tails": World(heavy=True),
    "no effect, 10 % of trials missing": World(missing=0.1),
    "no effect, sizes move together": World(own=0.0005, shared=0.004),
    "no effect, no placebo in the study": World(with_placebo=False),
    "effect of 4 standard errors": World(arm=-4),
    "the same, 5 % of trials missing": World(arm=-4, missing=0.05),
    "the same, placebo works as well": World(arm=-4, placebo=-4),
    "the same, placebo works better": World(arm=-4, placebo=-8),
    "the same, another rate works as well": World(arm=-4, rate=-4),
    "the same, no placebo of it exists": World(arm=-4, with_placebo=False, has_placebo=False),
    "no effect, no placebo of it exists": World(with_placebo=False, has_placebo=False),
    "effect of 4 on loss and on slope": World(arm=-4, slope=4),
}


def make(folder: Path, trials: int, steps: int) -> int:
    """A study of at least `trials` trials in `folder`; returns their number."""
    write_study(folder, np.random.default_rng(0), arms=ARMS, sizes=SIZES, seeds=WRITTEN_SEEDS, steps=steps)
    path = folder / "studies/study-0/study.json"
    study = read_json(path)
    written = list(study["trials"])
    copies = -(-trials // len(written))
    study["seeds"] = list(range(WRITTEN_SEEDS * copies))
    for copy in range(1, copies):
        for trial in written:
            identity = f"{copy:04x}{trial['identity'][4:]}"
            source, target = folder / "trials" / trial["identity"], folder / "trials" / identity
            target.mkdir()
            for file in source.iterdir():
                os.link(file, target / file.name)
            study["trials"].append(trial | {"identity": identity, "seed": trial["seed"] + WRITTEN_SEEDS * copy})
    write_json(path, study)
    return len(study["trials"])


def read(folder: str, every_step: bool) -> dict[str, float]:
    """Seconds and peak memory of reading a study in this process."""
    from analysis.study.load import load_study
    from analysis.study.measures import Measures

    start, processor = time.perf_counter(), time.process_time()
    measures = Measures(load_study(folder))
    finished = 0
    for trial in measures.study.trials:
        finished += trial.finished and (not every_step or measures.steps(trial) is not None)
    seconds = time.perf_counter() - start
    spent = time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "trials": finished,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent, 1),
        "peak_GiB": round(peak, 2),
    }


def in_fresh_process(folder: Path, every_step: bool) -> dict[str, float]:
    """`read` where nothing else has taken memory."""
    code = f"import json, benchmarks.analysis as b; print(json.dumps(b.read({str(folder)!r}, {every_step})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--studies", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make(folder, args.trials, args.steps)
        print(f"made {made} trials of {args.steps} steps", file=sys.stderr)
        reading = {"probes": in_fresh_process(folder, False), "probes and steps": in_fresh_process(folder, True)}
    rates = {name: dict(verdicts(world, args.studies)) for name, world in WORLDS.items()}
    if args.json:
        print(json.dumps({"reading": reading, "error_rates": rates}))
        return
    print("| read | trials | seconds | CPU seconds | peak memory (GiB) |\n|---|---|---|---|---|")
    for what, row in reading.items():
        print(f"| {what} | {row['trials']} | {row['seconds']} | {row['cpu_seconds']} | {row['peak_GiB']} |")
    words = ("no effect found", "below baseline, placebo not run", "improves", "mitigates deceleration", "hurts")
    print(f"\n| truth ({args.studies} studies each) | {' | '.join(words)} |\n|---|{'---|' * len(words)}")
    for name, row in rates.items():
        print(f"| {name} | {' | '.join(str(row.get(word, 0)) for word in words)} |")


if __name__ == "__main__":
    main()
