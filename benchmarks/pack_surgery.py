"""What a step of a pack with gradient surgery costs the host: weights of all runs at once, and one run after the other.

    python -m benchmarks.pack_surgery [--methods NAME ...] [--runs 16] [--groups 16] [--json]

Milliseconds a run and step, from the Gramians and losses of sequences to weights and records, in turns in one process
by its CPU clock; the least of some turns. Gradients are drawn from a normal distribution, so about half of all pairs
conflict. On a GPU this is what it waits for at every step (benchmarks/gpu.py times whole steps of packs).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zslx.config.run_config import Config, override
from zslx.intervention.base import RunView
from zslx.intervention.composed import Methods
from zslx.intervention.registry import load_intervention
from zslx.text.loader import Batch
from zslx.training.course import Gradient
from zslx.training.gradient_pass import GradientPass
from zslx.training.sequence_surgery import SequenceSurgery
from zslx.training.stack import Stack

METHODS = (
    "pcgrad",
    "placebo:pcgrad",
    "gradvac",
    "imtl_g",
    "config",
    "aligned_mtl",
    "adacons",
    "fairgrad",
    "nash_mtl",
    "alignment",
    "random",
    "gaf",
    "mgda",
    "dualproj",
    "cagrad",
    "upgrad",
)
POSITIONS = 8
TURNS = 12


def runs_of(name: str, runs: int, groups: int) -> dict[int, Gradient]:
    """The requests of runs that differ in their seed."""
    tokens = torch.zeros(groups, POSITIONS, dtype=torch.int64)
    batch = Batch(tokens=tokens, targets=tokens, domains=tokens[:, 0])
    found = {}
    for seed in range(runs):
        view = RunView(step=1, batch_size=groups, config=override(Config(), [("train.seed", seed)]))
        own = GradientPass(nn.Linear(1, 1), Methods([load_intervention(name)], view), dtype="float32")
        found[seed] = Gradient(step=1, own=own, batch=batch)
    return found


def measure(name: str, runs: int, groups: int) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(0)
    gradients = torch.randn(runs, groups, 20 * groups, generator=draws)
    losses = 1 + torch.rand(runs, groups, POSITIONS, generator=draws)
    gramians, means = gradients @ gradients.mT, losses.mean((1, 2))
    due = runs_of(name, runs, groups)
    stack = Stack([ask.own.model for ask in due.values()])

    def solve(asked: Mapping[int, Gradient]) -> None:
        row = {i: r for r, i in enumerate(asked)}
        of = list(asked)
        surgery = SequenceSurgery(stack, row, losses[of], gradients[of, :, :1], gramians[of], means[of])
        for outcome in surgery.answers(asked).values():
            if isinstance(outcome, Exception):
                raise outcome

    ways: Sequence[Callable[[], Any]] = (lambda: [solve({i: ask}) for i, ask in due.items()], lambda: solve(due))
    times: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for way, took in zip(ways, times, strict=True):
            began = time.thread_time()
            way()
            took.append(time.thread_time() - began)
    each, at_once = (1e3 * min(took) / runs for took in times)
    packed = next(iter(due.values())).own.methods.surgeon.solves_packs()
    return {"method": name, "packed form": packed, "each": each, "at once": at_once, "ratio": each / at_once}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="default: those that weight groups by sequence")
    parser.add_argument("--runs", type=int, default=16, help="of the pack")
    parser.add_argument("--groups", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, args.runs, args.groups) for name in args.methods]
    if args.json:
        print(json.dumps(rows))
        return
    print("| method | packed form | one after the other | at once | ratio |\n|---|---|---|---|---|")
    for row in rows:
        own = "yes" if row["packed form"] else "no"
        print(f"| {row['method']} | {own} | {row['each']:.3f} | {row['at once']:.3f} | {row['ratio']:.1f} |")


if __name__ == "__main__":
    main()
