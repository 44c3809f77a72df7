"""Which groupings give surgery anything to do: conflict between group gradients over training.

    python -m benchmarks.conflict RUN [RUN ...] [--figure docs/conflict.png] [--json FILE]

RUN: folders of finished runs, best of several seeds (results/trials/<identity>). At each of their checkpoints t the
gradients of the next `BATCHES` training batches are measured under every grouping of gradient surgery, with the whole
Gramian; for groups of tokens the proxy's beside it. Per batch, over the K groups that are there:

    negative cosines   share of pairs with a negative cosine
    cancellation       1 − |Σ g_k| / Σ |g_k|; groups at right angles to one another would give 1 − √Σ|g_k|² / Σ|g_k|

The figure shows medians over batches and runs, with the middle half. Cost: about a minute a run on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zslx
from zslx import RunView, StepView
from zslx.config.run_config import Config
from zslx.figure_style import PALETTE
from zslx.gradients import group_stats
from zslx.intervention.gradient_method import BY_TOKEN, GROUPINGS
from zslx.model.losses import token_losses
from zslx.runs import checkpoints
from zslx.runs.json_files import read_json
from zslx.runs.load import load_run_model
from zslx.text import token_cache
from zslx.text.loader import Batch, Loader

BATCHES = 4
Row = dict[str, Any]


def measure(folder: Path) -> Iterator[Row]:
    """One row a checkpoint, batch and grouping of a run."""
    config = Config.from_dict(read_json(folder / "config.json"))
    corpus = token_cache.corpus_of(config.data)
    data = config.data
    loader = Loader(corpus, seed=config.train.seed, batch_size=data.batch_size, seq_len=data.seq_len, device="cpu")
    counts = torch.as_tensor(corpus.token_counts)
    for step in checkpoints.steps(folder / "checkpoints"):
        model = load_run_model(folder, step)
        for later in range(1, BATCHES + 1):
            batch = loader.batch(step + later)
            with torch.no_grad():
                losses = token_losses(model, batch)
            run = RunView(step=step, steps=config.train.steps, domains=corpus.domains, token_counts=counts)
            view = StepView(tokens=batch.tokens, targets=batch.targets, losses=losses, domains=batch.domains)
            for grouping in GROUPINGS:
                yield {"run": folder.name, "step": step, "batch": later} | conflict(model, batch, run, view, grouping)
        print(f"{folder.name}: step {step}", file=sys.stderr, flush=True)


def conflict(model: torch.nn.Module, batch: Batch, run: RunView, view: StepView, grouping: str) -> Row:
    method = zslx.load_intervention("pcgrad", groups=grouping)
    ids, count = method.group_ids(run, view, {})
    if ids.ndim == 1:
        stats = group_stats(model, token_losses, batch, (ids, count), want=("gramian",))
        return {"grouping": grouping} | of_gramian(stats.gramian)
    exact, proxy = (
        group_stats(model, token_losses, batch, (ids, count), want=("gramian",), proxy=proxy).gramian
        for proxy in (False, True)
    )
    found = cosines(exact), cosines(proxy)
    return {"grouping": grouping, "cosines": found[0].tolist(), "proxy": found[1].tolist()} | of_gramian(exact)


def cosines(gramian: Tensor | None) -> Tensor:
    """Of every pair of groups that are there, (pairs,)."""
    assert gramian is not None
    norms = gramian.diagonal().double().clamp_min(0).sqrt()
    there = norms > 0
    unit = gramian.double()[there][:, there] / norms[there].outer(norms[there])
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
    return unit[rows, columns]


def of_gramian(gramian: Tensor | None) -> Row:
    assert gramian is not None
    found = cosines(gramian)
    square, norms = gramian.double(), gramian.diagonal().double().clamp_min(0).sqrt()
    return {
        "groups": int((norms > 0).sum()),
        "negative": float((found < 0).double().mean()),
        "mean_cosine": float(found.mean()),
        "cancellation": 1 - float(square.sum().clamp_min(0).sqrt() / norms.sum()),
        "at_right_angles": 1 - float(norms.square().sum().sqrt() / norms.sum()),
    }


def curve(rows: Sequence[Row], grouping: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps (S,), quartiles (3, S)) of a number over batches and runs."""
    steps = sorted({row["step"] for row in rows})
    values = [[row[key] for row in rows if row["step"] == s and row["grouping"] == grouping] for s in steps]
    return np.array(steps), np.array([np.quantile(v, (0.25, 0.5, 0.75)) for v in values]).T


def draw(rows: Sequence[Row], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    colours = (*PALETTE[1:6], PALETTE[0])
    titles = {"negative": "pairs of groups with a negative cosine", "cancellation": "cancellation, 1 − |Σ g| / Σ |g|"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for grouping, colour in zip(GROUPINGS, colours, strict=True):
            steps, (low, middle, high) = curve(rows, grouping, key)
            count = round(statistics.mean(row["groups"] for row in rows if row["grouping"] == grouping))
            ax.plot(steps, middle, color=colour, lw=1.6, marker="o", ms=3, label=f"{grouping}, K={count}")
            ax.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
            if key == "cancellation":
                ax.plot(*(steps, curve(rows, grouping, "at_right_angles")[1][1]), color=colour, lw=0.8, ls=":")
        ax.set_xscale("log")
        ax.set_ylim(0, 1)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("step")
        ax.grid(color="#d9dce1", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(out)


def tables(rows: Sequence[Row]) -> str:
    """Markdown: conflict by grouping and step; agreement of the proxy."""
    steps = sorted({row["step"] for row in rows})
    shown = [s for s in steps if s in (1, 8, 32, 64, 128, 256, 512, steps[-1])]
    lines = ["| share of negative cosines | " + " | ".join(f"step {s}" for s in shown) + " |"]
    lines.append("|" + "---|" * (len(shown) + 1))
    for grouping in GROUPINGS:
        found: Mapping[int, float] = dict(zip(*pair(curve(rows, grouping, "negative")), strict=True))
        lines.append(f"| {grouping} | " + " | ".join(f"{found[s]:.2f}" for s in shown) + " |")
    lines += [
        "",
        "| proxy: correlation of cosines, signs that agree | " + " | ".join(f"step {s}" for s in shown) + " |",
    ]
    lines.append("|" + "---|" * (len(shown) + 1))
    for grouping in BY_TOKEN:
        cells = []
        for s in shown:
            here = [row for row in rows if row["step"] == s and row["grouping"] == grouping]
            exact, proxy = (np.concatenate([row[key] for row in here]) for key in ("cosines", "proxy"))
            cells.append(f"{np.corrcoef(exact, proxy)[0, 1]:.2f}, {np.mean((exact < 0) == (proxy < 0)):.0%}")
        lines.append(f"| {grouping} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pair(found: tuple[np.ndarray, np.ndarray]) -> tuple[list[int], list[float]]:
    return found[0].tolist(), found[1][1].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", type=Path, help="write the figure there (PNG or SVG)")
    parser.add_argument("--json", type=Path, help="write every row there")
    args = parser.parse_args()
    torch.set_num_threads(1)  # small products: more threads cost more than they bring
    rows = [row for folder in args.runs for row in measure(folder)]
    if args.json:
        args.json.write_text(json.dumps(rows))
    if args.figure:
        draw(rows, args.figure)
    print(tables(rows))


if __name__ == "__main__":
    main()
