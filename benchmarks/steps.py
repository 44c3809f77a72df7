"""Cost of a training step under every intervention, relative to the plain step.

    python -m benchmarks.steps [--families curriculum ...] [--methods pcgrad focal ...] [--markdown FILE] [--json]

Model 4M (tied), 16 sequences of 128 positions, default settings, one thread. The step is `TrainingRun.step`: data,
gradient, clipping, optimizer, records. Plain and method take turns, a step each, in one process. Two figures: the
median ratio of neighbouring steps (zslx/probing/step_cost.py), and the ratio of all steps together, which also has the
steps at which a method measures something, one in ten with most. Curricula are at their first and shortest steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from zslx.intervention.discovery import discover
from zslx.intervention.registry import load_class
from zslx.probing.step_cost import in_turns, steppers

NO_ARMS = ("none", "placebo")
PAIRS = 30


def measure(names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        with steppers(name, "4M") as (plain, arm):
            times = in_turns(plain, arm, PAIRS)
        plains, arms = zip(*times, strict=True)
        row = {
            "method": name,
            "ratio": statistics.median(own / base for base, own in times),
            "together": sum(arms) / sum(plains),
            "plain_ms": 1e3 * statistics.median(plains),
        }
        print(f"{name}: {row['ratio']:.2f}, together {row['together']:.2f} × {row['plain_ms']:.0f} ms", flush=True)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | median step | all steps | expected |", "|---|---|---|---|"]
    for row in rows:
        cost = load_class(row["method"]).cost
        lines.append(f"| {row['method']} | {row['ratio']:.2f} | {row['together']:.2f} | {cost} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="default: all of the families")
    parser.add_argument("--families", nargs="+", help="default: all")
    parser.add_argument("--markdown", type=Path, help="append the table there")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    family = {name: load_class(name, found).family for name, found in discover().items() if name not in NO_ARMS}
    names = args.methods or [name for name in family if not args.families or family[name] in args.families]
    rows = measure(names)
    print(json.dumps(rows) if args.json else markdown(rows))
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write(markdown(rows))


if __name__ == "__main__":
    main()
