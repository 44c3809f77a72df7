"""The report's table of downstream scores, where `zslx evaluate` has left some."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from analysis.inference.contrasts import contrast
from analysis.numbers import MISSING, minus, printable
from analysis.report.blocks import Block, Table, Text
from analysis.report.figures import Figures, ordered
from analysis.study.evaluations import Score, scores

Cell = dict[int, float]  # scores by seed


def downstream(figures: Figures) -> list[Block]:
    """Scores at the last step: mean over seeds and the paired difference to the baseline, at each size."""
    study = figures.measures.study
    try:
        found = scores(trial for trial in study.trials if trial.finished)
    except ValueError as error:
        return [Text(text=f"No downstream scores: {error}")]
    last = {(t.arm, t.size, t.seed): t.config["train"]["steps"] for t in study.trials if t.finished and t.config}
    cells: dict[tuple[str, str, str], dict[tuple[str, str], Cell]] = defaultdict(lambda: defaultdict(dict))
    for s in found:
        if s.step == last.get((s.arm, s.size, s.seed)):
            cells[_named(s), s.metric, s.key][s.arm, s.size][s.seed] = s.score
    rows = []
    for (task, metric, _), by_cell in cells.items():
        for arm in ordered(study.arms):
            if any((arm.name, size) in by_cell for size in figures.sizes):
                base = figures.base if arm.name != figures.base else ""
                texts = [_cell(by_cell.get((arm.name, s), {}), by_cell.get((base, s), {})) for s in figures.sizes]
                rows.append((f"{printable(task)}: {printable(metric)}", arm.name, *texts))
    if not rows:
        return []
    return [
        Table(
            columns=("task", "arm", *figures.sizes),
            rows=tuple(rows),
            heads=2,
            caption="Scores of lm-evaluation-harness at the last step. Means over seeds; in parentheses the paired "
            "difference to the baseline, ± its 95 % interval. They describe: the rule does not read them, and nothing "
            "corrects for their number.",
        )
    ]


def _named(score: Score) -> str:
    shots = "" if score.few_shot is None else f", {score.few_shot}-shot"
    return score.task + shots + (f", first {score.limit}" if score.limit else "")


def _cell(own: Cell, base: Cell) -> str:
    """`0.312 (+0.021 ± 0.014)`; without a difference, or its interval, where there is none."""
    if not own:
        return MISSING
    mean = f"{np.mean(list(own.values())):.3f}"
    found = contrast([own[seed] - base[seed] for seed in own if seed in base])
    if found is None:
        return minus(mean)
    half = "" if found.high is None else f" ± {found.high - found.estimate:.3f}"
    return minus(f"{mean} ({found.estimate:+.3f}{half})")
