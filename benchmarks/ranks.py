"""What ranks send to each other, and what a step takes with them, on this machine.

    python -m benchmarks.ranks             a table: the smoke preset's model, 8 sequences a step, on 1, 2 and 4 ranks

What a rank hands to collectives in one step, in parameters, stands beside what the formulas of docs/scale.md give; it
does not depend on the machine. Seconds do: ranks that have no core of their own take turns.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from zslx.config.presets import preset
from zslx.config.run_config import Config, override
from zslx.distributed.launch import launch
from zslx.distributed.train import train_on_ranks
from zslx.runs.records import read_run
from zslx.training.train import train

SEQUENCES, STEPS, WORLDS = 8, 40, (2, 4)
BYTES = 4
METHODS = {"none": {}, "pcgrad": {}, "agreement": {}, "pcgrad domain": {"pcgrad.groups": "domain"}}


def configuration(method: str) -> Config:
    chosen = preset("smoke")
    values: dict[str, Any] = {"data.batch_size": SEQUENCES, "train.steps": STEPS, "instruments.probes": False}
    values |= {"instruments.heldout_points": 2, "run.resume_seconds": 1e9, "intervention": method.split()[0]}
    return override(chosen.for_size(chosen.sizes[0]), list((values | METHODS[method]).items()))


def measured(config: Config, world: int) -> tuple[float, dict[str, float], int]:
    """Seconds a step, bytes a rank sends in it by kind of collective, and parameters."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        manifest = train(config, run) if world == 1 else launch(world, train_on_ranks, config, run)
        lines = [line for line in read_run(run).timing if line["step"] > 1]
    steps = sum(line["steps"] for line in lines)
    sent: dict[str, float] = {}
    for line in lines:
        for kind, count in line.get("sent", {}).items():
            sent[kind] = sent.get(kind, 0.0) + count / steps
    return manifest["totals"]["median_step_seconds"], sent, manifest["parameters"]["total"]


def predicted(method: str, world: int, parameters: int) -> tuple[float, float]:
    """Bytes all-reduced and exchanged: all gradients, and for surgery the share of the coordinates of each sequence."""
    if method == "none":
        return BYTES * parameters, 0.0
    sums = 2 if method == "agreement" else 1  # agreement: plain and sign or absolute sums; pcgrad: the combination
    return BYTES * parameters * sums, BYTES * parameters * SEQUENCES / world * (world - 1) / world


def main() -> None:
    print("method         ranks   ms a step   all-reduced (P)   exchanged (P)   by formula")
    for method in METHODS:
        for world in (1, *WORLDS):
            seconds, sent, parameters = measured(configuration(method), world)
            whole = BYTES * parameters
            reduced, exchanged = (sent.get(kind, 0.0) / whole for kind in ("all_reduce", "all_to_all"))
            formula = [value / whole if world > 1 else 0.0 for value in predicted(method, world, parameters)]
            of = "" if "domain" in method else json.dumps([round(value, 2) for value in formula])
            print(f"{method:14} {world:5} {seconds * 1e3:11.1f} {reduced:17.2f} {exchanged:15.2f}   {of}")


if __name__ == "__main__":
    main()
