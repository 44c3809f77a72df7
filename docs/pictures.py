"""Draws docs/laptop.png, the picture of the README, from the results of a sweep: python docs/pictures.py RESULTS

Left: the training loss of the baseline at each size, mean over seeds, with its fit and (t_d, L_d), as Figure 1 of the
zero-sum learning paper. Right: D of the loss changes that one step makes on held-out text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

from analysis.inference.pooled_breaks import PooledBreaks, load
from analysis.report import curves
from analysis.report.drawing import PALETTE, round_ticks, short

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent / "laptop.png"


def draw(breaks: PooledBreaks, out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    base = breaks.study.baseline.name
    for i, size in enumerate(s for s in breaks.study.sizes if s in breaks.measures.horizon):
        colour = PALETTE[i + 1]
        loss, fitted = curves.training(breaks, base, size), curves.fitted(breaks, base, size, breaks.kind)
        if loss is None or fitted is None:
            continue
        line, fit = fitted
        L_d, t_d, r_d = (fit.ranges()[name].mean for name in ("L_d", "t_d", "r_d"))
        label = f"{size}: $L_d$ {L_d:.2f}, $t_d$ {t_d:,.0f}, $r_d$ {r_d:.3f}"
        left.plot(loss.x, loss.y, color=colour, linewidth=1, alpha=0.55)
        left.plot(line.x, line.y, color=colour, linewidth=1.6, label=label)
        left.plot(
            [t_d],
            [L_d],
            "D",
            color=colour,
            markersize=6,
            markerfacecolor=colour if fit.identified else "none",
        )
        own = curves.instrument(breaks.measures, base, size, "dt1_heldout.D")
        if own is not None:
            right.plot(own.x, own.y, color=colour, linewidth=1.8, label=size)
    for axes, title in (
        (left, "Training loss of the baseline (nats per token)"),
        (right, "Destructive interference D of loss changes by one step, held-out"),
    ):
        axes.set_xscale("log")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(True, color="#d9dce1", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    left.set_xlim(left=8)
    low, high = left.get_ylim()
    ticks = [t for t in np.arange(3, 9, 0.5) if low <= t <= high]
    left.set_yticks(ticks, [f"{t:g}" for t in ticks])
    left.minorticks_off()
    for axes in (left, right):
        places = round_ticks(*axes.get_xlim())
        axes.set_xticks(places, [short(p) for p in places])
    figure.savefig(out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: python {sys.argv[0]} RESULTS")
    draw(load(sys.argv[1]), OUT)
    print(OUT)
