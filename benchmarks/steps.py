"""Cost of a training step under every intervention, relative to the plain step.

    python -m benchmarks.steps [--methods pcgrad focal ...] [--markdown FILE] [--json]

Model 4M (tied), 16 sequences of 128 positions, default settings, one thread. The step is `TrainingRun.step`: data,
gradient, clipping, optimizer, records. Plain and method take turns, a step each, in one process; the figure is the
median ratio of neighbouring steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from zslx.config.presets import preset
from zslx.config.run_config import parse_overrides
from zslx.intervention.discovery import discover
from zslx.intervention.registry import load_class, load_intervention
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun, train

SETTINGS = ["model=4M", "data.batch_size=16", "data.seq_len=128", "instruments.probes=false"]
FAMILIES = ("gradient_surgery", "token_weighting")
FIRST = 10**6  # a step number far from those of the instruments
PAIRS = 15


def run_of(name: str, folder: Path) -> TrainingRun:
    settings = [*SETTINGS, f"intervention={name}", "instruments.heldout_points=2"]
    if name != "none" and "reference_losses" in load_intervention(name).needs:
        reference = folder / "reference"
        if not reference.exists():
            train(parse_overrides(preset("laptop").config, [*SETTINGS, "train.steps=1"]), reference)
        settings.append(f"reference={reference}")
    return TrainingRun(parse_overrides(preset("laptop").config, settings), folder / name)


def seconds(run: TrainingRun, clock: Clock, step: int) -> float:
    start = time.perf_counter()
    run.step(step, clock)
    return time.perf_counter() - start


def measure(names: list[str]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = run_of("none", Path(folder))
        plain_clock = Clock(plain.records)
        for name in names:
            run = run_of(name, Path(folder))
            clock = Clock(run.records)
            ratios, base = [], []
            for i in range(PAIRS + 1):
                pair = seconds(plain, plain_clock, FIRST + i), seconds(run, clock, FIRST + i)
                if i:  # the first warms up
                    base.append(pair[0])
                    ratios.append(pair[1] / pair[0])
            row = {"method": name, "ratio": statistics.median(ratios), "plain_ms": 1e3 * statistics.median(base)}
            rows.append(row)
            run.records.close()
            print(f"{name}: {row['ratio']:.2f} × {row['plain_ms']:.0f} ms", flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | step | expected |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['method']} | {row['ratio']:.2f} | {load_class(row['method']).cost} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="default: all of gradient surgery and token weighting")
    parser.add_argument("--markdown", type=Path, help="append the table there")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = args.methods or [n for n, found in discover().items() if load_class(n, found).family in FAMILIES]
    rows = measure(names)
    print(json.dumps(rows) if args.json else markdown(rows))
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write(markdown(rows))


if __name__ == "__main__":
    main()
