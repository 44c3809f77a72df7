"""What the instruments cost: their share of a laptop trial's time, by size and by instrument.

    python -m benchmarks.instruments [--sizes 0.1M 0.2M 0.4M] [--steps 1200] [--json]

Each size is trained once with the `laptop` preset's settings; the share is manifest totals
instrument_seconds / seconds. Each instrument alone is then timed at the final weights, interleaved, in medians
relative to a plain training step, beside how often the trial runs it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zslx.config.presets import preset
from zslx.config.run_config import Config, parse_overrides
from zslx.gradients import position_interference, sequence_stats
from zslx.instruments.gradient_interference import sequence_record, spread
from zslx.instruments.measuring_steps import heldout_steps, probe_steps
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import token_losses
from zslx.seeds import generator
from zslx.text.token_cache import corpus_of
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun
from zslx.training.train import train

REPEATS = 15


def trial(config: Config, folder: Path) -> dict[str, Any]:
    """Share of the instruments in a whole trial."""
    totals = train(config, folder)["totals"]
    share = totals["instrument_seconds"] / totals["seconds"]
    return {"share": share, "seconds": totals["seconds"], "step_ms": 1e3 * totals["median_step_seconds"]}


def parts(config: Config, folder: Path) -> dict[str, dict[str, float]]:
    """Each instrument in plain steps, and how often the trial runs it."""
    run = TrainingRun(config, folder)
    held, batch = run.instruments.heldout, run.loader.batch(1)
    sequences = spread(held.batch, config.instruments.gradient_sequences)
    want = ("sum", "abs_sum", "gramian")

    clock, steps = Clock(run.records), iter(range(1, 10**6))

    def step() -> None:
        run.step(next(number for number in steps if not run.instruments.due(number)), clock)

    def gradients() -> None:
        signs = generator(0, "benchmark")
        sequence_record(run.model, sequence_stats(run.model, token_losses, sequences, want=want, chance=signs))

    points = len(heldout_steps(config.train.steps, config.instruments.heldout_points))
    probes = len(probe_steps(config.train.steps))
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "plain step": (step, config.train.steps),
        "held-out loss": (lambda: held.losses(run.model), points),
        "held-out loss with decomposition": (lambda: held.losses(run.model, decomposition=Decomposition()), probes),
        "dt1 on the step's batch": (lambda: held.training_losses(run.model, batch), probes),
        "gradients of the sequences": (gradients, probes),
        "gradients of the positions (off)": (lambda: position_interference(run.model, token_losses, sequences), 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(REPEATS + 2):
        for name, (job, _) in jobs.items():
            start = time.perf_counter()
            job()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: {"steps": median[name] / median["plain step"], "times": times} for name, (_, times) in jobs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.1M", "0.2M", "0.4M"])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="other settings")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {}
    for size in args.sizes:
        config = parse_overrides(preset("laptop").for_size(size), args.set)
        corpus_of(config.data)
        with tempfile.TemporaryDirectory() as folder:
            result = trial(config, Path(folder) / "trial")
            result["parts"] = parts(config, Path(folder) / "parts")
        found[size] = result
        print(f"{size}: {result['share']:.1%} of {result['seconds']:.0f} s", file=sys.stderr)
        for name, part in result["parts"].items():
            print(f"    {name:<34}{part['steps']:7.2f} steps, {part['times']:5d} times", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
