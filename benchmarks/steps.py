"""Cost of a training step under every intervention, relative to the plain step.

    python -m benchmarks.steps [--methods pcgrad focal ...] [--markdown FILE] [--json]

Model 4M (tied), 16 sequences of 128 positions, default settings, one thread. The step is `TrainingRun.step`: data,
gradient, clipping, optimizer, records. Plain and method take turns, a step each, in one process; the figure is the
median ratio of neighbouring steps (zslx/probing/step_cost.py).
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

FAMILIES = ("gradient_surgery", "token_weighting")
PAIRS = 15


def measure(names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        with steppers(name, "4M") as (plain, arm):
            times = in_turns(plain, arm, PAIRS)
        ratio, base = (statistics.median(v) for v in zip(*((own / base, base) for base, own in times), strict=True))
        rows.append({"method": name, "ratio": ratio, "plain_ms": 1e3 * base})
        print(f"{name}: {ratio:.2f} × {1e3 * base:.0f} ms", flush=True)
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
