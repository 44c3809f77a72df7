"""How cost and memory of the engine grow with B, T, width and vocabulary, beside what the arithmetic predicts.

    python -m benchmarks.gradients_scaling

Around d=192, 4 layers, 3 heads, vocabulary 2,048, B=16, T=128, one of the four at a time. Predicted, with P the
parameters (a tied matrix once) and N = B·T, over the 6 N P multiplications and additions of a plain pass:

    passes over the group gradients   P·B numbers each, against the N·P of a product: overhead ∝ 1/T
    Gramian                           2 B² P: overhead B / (3 T)
    kept gradients                    4 B P bytes, against activations ∝ N: ratio ∝ P / T
    kept factors                      output gradients and inputs of the linear layers: ∝ N
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks.gradients import Workload, peak_bytes
from zslx.gradients import sequence_stats
from zslx.training.malloc import keep_freed_memory

BASE = {"B": 16, "T": 128, "width": 192, "vocabulary": 2048}
POINTS = {"B": (8, 16, 32), "T": (64, 128, 256), "width": (96, 192, 384), "vocabulary": (1024, 2048, 8192)}
TURNS = 7


def main() -> None:
    torch.set_num_threads(2)
    keep_freed_memory()
    print(
        "| B | T | width | vocabulary | plain ms | interference | Gramian + combine | predicted Gramian "
        "| plain MiB | all kept | predicted kept MiB | kept MiB | low memory |"
    )
    print("|" + "---|" * 13)
    seen = set()
    for name, values in POINTS.items():
        for value in values:
            point = BASE | {name: value}
            key = tuple(point.values())
            if key not in seen:
                seen.add(key)
                print(row(**point), flush=True)
                print(f"  {name} = {value} measured", file=sys.stderr, flush=True)


def row(B: int, T: int, width: int, vocabulary: int) -> str:
    work = Workload.make(width, 4, 3, B, T, vocabulary=vocabulary)
    runs = (work.plain, work.interference, lambda: combine(work, None))
    taken: list[list[float]] = []
    for _ in range(TURNS + 1):
        turn = []
        for run in runs:
            start = time.perf_counter()
            run()
            turn.append(time.perf_counter() - start)
        taken.append(turn)
    taken = taken[1:]
    plain = statistics.median(t[0] for t in taken)
    interference, gramian = (statistics.median(t[i] / t[0] for t in taken) for i in (1, 2))
    parameters = sum(p.numel() for p in work.model.parameters())
    memory, everything, low = (
        peak_bytes(work, run) for run in (work.plain, lambda: combine(work, None), lambda: combine(work, 0))
    )
    kept = combine(work, None)
    cells = [
        B,
        T,
        width,
        vocabulary,
        f"{plain * 1e3:.0f}",
        f"{interference:.2f}",
        f"{gramian:.2f}",
        f"+{B / (3 * T):.2f}",
        f"{memory / 2**20:.0f}",
        f"{everything / memory:.2f}",
        f"{4 * B * parameters / 2**20:.0f}",
        f"{kept / 2**20:.0f}",
        f"{low / memory:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def combine(work: Workload, budget: int | None) -> int:
    """Gramian and a combination; the bytes kept for it."""
    work.model.zero_grad()
    stats = sequence_stats(work.model, work.losses, work.ids, want=("gramian",), keep=True, memory_budget=budget)
    stats.combine(torch.ones(stats.num_groups))
    return stats.kept_bytes


if __name__ == "__main__":
    main()
