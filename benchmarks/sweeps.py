"""What the machinery of a sweep costs beside the training itself.

    python -m benchmarks.sweeps [--intervention pcgrad] [--preset laptop] [--steps 300] [--json]

`ratio` is the wall time of the whole command (planning, Ray, workers' imports, wandb, analysis, report) over the sum
of the trials' own time (training and instruments, from their manifests) divided by the slots. `again` is the wall time
of the same command when nothing is left to train.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps.commands import cores


def sweep(arguments: list[str]) -> float:
    """Seconds of one `zslx sweep`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "zslx", "sweep", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(intervention: str, preset: str, steps: int, slots: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--preset", preset, "--steps", str(steps), "--slots", str(slots), "--results", folder]
        sweep([intervention, *options, "--dry-run"])  # the text is prepared once for all sweeps of a machine
        wall = sweep([intervention, *options])
        totals = [json.loads(p.read_text())["totals"] for p in Path(folder).glob("trials/*/manifest.json")]
        trained = sum(total["seconds"] for total in totals)
        again = sweep([intervention, *options])
    ratio = wall / (trained / slots)
    return {"trials": len(totals), "wall": wall, "trained": trained, "slots": slots, "ratio": ratio, "again": again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervention", default="pcgrad")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--slots", type=int, default=cores())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    row = measure(args.intervention, args.preset, args.steps, args.slots)
    if args.json:
        print(json.dumps(row))
        return
    print(f"{row['trials']} trials of {args.steps} steps, {args.slots} at a time: {row['wall']:.0f} s in all")
    print(f"the trials' own time over the slots: {row['trained'] / args.slots:.0f} s; ratio {row['ratio']:.2f}")
    print(f"the same command again: {row['again']:.1f} s")


if __name__ == "__main__":
    main()
