"""The report's part on who gains at whose expense: held-out loss by domain and by frequency, and D between domains."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from analysis.inference.rows import Comparison, DomainChanges, Interval, Part
from analysis.numbers import MISSING, difference, minus, number, plus_minus, printable
from analysis.report.blocks import Axes, Block, Figure, HeatMap, Panel, Table
from analysis.report.figures import Figures
from analysis.report.row_figure import bar, per_cent

Grouping = Literal["by_domain", "by_frequency"]
FREQUENT = {"0": "most frequent", "1": "frequent", "2": "rarer", "3": "rarest"}
SET = "The held-out tokens are the same for every arm, whatever it trained on."
ROWS: dict[Grouping, str] = {
    "by_domain": "Rows with the name of a domain: the tokens of its text.",
    "by_frequency": "Rows from most frequent to rarest: by how frequent the token to be predicted is in the training "
    "text, each about a quarter of it.",
}
GAP = " "  # the name of the empty row between the groupings
SPREAD = 0.6  # of a row's height, over which its arms lie one below the other


def held_out(figures: Figures, comparison: Comparison) -> list[Block | None]:
    """The blocks in the order of the page."""
    return [
        changes(figures, comparison),
        losses(comparison, "by_domain"),
        losses(comparison, "by_frequency"),
        matrices(figures, comparison),
        doublings(comparison),
    ]


def label(grouping: Grouping, name: str) -> str:
    return FREQUENT.get(name, name) if grouping == "by_frequency" else name


def names_of(comparison: Comparison, grouping: Grouping) -> list[str]:
    """The parts that any arm has, in the order of the records."""
    return list(dict.fromkeys(name for cell in comparison["cells"] for name in cell["held_out"][grouping]))


def changes(figures: Figures, comparison: Comparison) -> Figure | None:
    """Each arm's paired difference to the baseline in each part of the held-out tokens, one panel a size."""
    groupings: tuple[Grouping, ...] = ("by_domain", "by_frequency")
    parts = [[(g, name) for name in names_of(comparison, g)] for g in groupings]
    between: list[tuple[Grouping, str]] = [("by_domain", GAP)] if all(parts) else []
    places = [*parts[0], *between, *parts[1]]
    rows = [printable(label(*place), 16) for place in places]
    panels, shown = [], set()
    for size in figures.sizes:
        cells = [c for c in comparison["cells"] if c["size"] == size and c["arm"] != figures.base]
        cells.sort(key=lambda c: figures.index[c["arm"]])
        marks, words = [], []
        for i, cell in enumerate(cells):
            shift = SPREAD * ((i + 0.5) / len(cells) - 0.5)
            found = [(at, cell["held_out"][g].get(name)) for at, (g, name) in enumerate(places)]
            there = [(at, p["difference"]) for at, p in found if p is not None and p["difference"] is not None]
            for at, d in there:
                how = bar(d, per_cent) | {"note": places[at][1]}
                marks.append(figures.marks(cell["arm"], [per_cent(d["estimate"])], [at + shift], size, **how))
            if there:
                shown.add(cell["arm"])
                texts = (f"{rows[at]} {per_cent(d['estimate']):+.2f} %" for at, d in there)
                words.append(f"{cell['arm']}: {', '.join(texts)}")
        if marks:
            look: dict[str, Any] = {"rows": rows, "zero": 0.0, "log_x": False, "time": False}
            panels.append(
                Panel(
                    title=size,
                    alternative=f"Held-out loss by domain and frequency against the baseline, size {size}. "
                    + "; ".join(words),
                    marks=marks,
                    axes=Axes(
                        **look,
                        x_label="difference to the baseline (%)",
                        extent=(4.3, 1.0 + len(rows) * max(0.28, 0.09 * len(cells))),
                    ),
                    size=size,
                )
            )
    if not panels:
        return None
    return Figure(
        title="Which tokens gain, and which lose",
        panels=tuple(panels),
        legend=figures.legend([arm for arm in figures.index if arm in shown]),
        caption="Held-out loss at T of a part of the tokens against the baseline's, paired by seed, with 95 % t "
        "intervals over seeds. Left of the line: these tokens are better predicted than by the baseline. An arm whose "
        "intervals lie on both sides of it gains on some tokens at the expense of others, which its mean alone does "
        f"not show. {' '.join(ROWS[g] for g, part in zip(groupings, parts, strict=True) if part)} {SET} Not corrected "
        "for the number of parts: with twenty of them one lies beside the line by chance.",
    )


def losses(comparison: Comparison, grouping: Grouping) -> Table | None:
    """The baseline's loss in each part, and every arm's paired difference to it."""
    names = names_of(comparison, grouping)
    base = [arm["name"] for arm in comparison["arms"] if arm["role"] == "baseline"]
    if not names:
        return None
    what = {
        "by_domain": ("domain", "by domain of the text"),
        "by_frequency": (
            "frequency of the token",
            "by how frequent the token to be predicted is in the training text, in groups of about a quarter of it",
        ),
    }[grouping]
    rows = tuple(
        (
            cell["size"],
            cell["arm"],
            *(_loss(cell["held_out"][grouping].get(name), cell["arm"] in base) for name in names),
        )
        for cell in comparison["cells"]
    )
    return Table(
        columns=("size", "arm", *(label(grouping, name) for name in names)),
        rows=rows,
        heads=2,
        folded=f"Held-out loss by {what[0]}, as numbers",
        caption=f"Held-out loss at T {what[1]}. The baseline: nats per token, with 95 % intervals over seeds. The "
        f"arms: per cent of the baseline's loss on the same tokens, paired by seed (below 0: better). {SET}",
    )


def _loss(part: Part | None, baseline: bool) -> str:
    if part is None:
        return MISSING
    return plus_minus(part["loss"], 4) if baseline else difference(part["difference"])


def matrices(figures: Figures, comparison: Comparison) -> Figure | None:
    """D between domains over the last doubling: the baseline's matrix beside each arm's."""
    found = {(c["arm"], c["size"]): d for c in comparison["cells"] if (d := c["held_out"]["last_doubling"])}
    values = [v for d in found.values() for row in d["between"] for v in row if v is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    panels = [
        _panel(arm, size, found[arm, size], low, high)
        for size in figures.sizes
        for arm in figures.index
        if (arm, size) in found
    ]
    return Figure(
        title="D between the domains over the last doubling of the steps",
        panels=tuple(panels),
        caption="Each cell: how far the loss changes of the tokens of two domains cancel, D = 1 − |S_a + S_b| / "
        "(A_a + A_b), with S the sum of the changes of a domain's tokens and A the sum of their sizes; on the "
        "diagonal, of the tokens of one domain. 0: all tokens went one way; 1: gains and losses cancel in full. Where "
        "two domains moved the same way, their cell is a mean of their two cells on the diagonal; where it is above "
        "that mean, one gained while the other lost. Compare an arm with the baseline, the first of its size, cell by "
        f"cell. Means over seeds; one scale for the whole figure, from {low:.2f} (faintest) to {high:.2f} (strongest).",
    )


def _panel(arm: str, size: str, d: DomainChanges, low: float, high: float) -> Panel:
    table = np.array([[math.nan if v is None else v for v in row] for row in d["between"]])
    inside = ", ".join(f"{name} {table[i, i]:.2f}" for i, name in enumerate(d["names"]))
    steps = f"steps {d['start']} to {d['end']}"
    n = len(d["names"])
    return Panel(
        title=f"{printable(size, 12)}  {printable(arm, 26)}",
        alternative=f"D between domains, size {size}, {arm}, {steps}: within {inside}",
        heat=HeatMap(names=d["names"], values=table, low=low, high=high),
        axes=Axes(time=False, log_x=False, extent=(3.4, 1.1 + 0.36 * min(max(n, 3), 8))),
        arm=arm,
        size=size,
    )


def doublings(comparison: Comparison) -> Table | None:
    """What the last doubling did to each domain, and how much of the interference lies between them."""
    found = [(c, d) for c in comparison["cells"] if (d := c["held_out"]["last_doubling"])]
    if not found:
        return None
    names = list(dict.fromkeys(name for _, d in found for name in d["names"]))
    rows = [
        (
            cell["size"],
            cell["arm"],
            f"{d['start']} to {d['end']}",
            *(_signed(d["shift"].get(name)) for name in names),
            plus_minus(d["between_share"], 3),
            number(d["difference"]),
        )
        for cell, d in found
    ]
    return Table(
        columns=("size", "arm", "steps", *(f"change, {name}" for name in names),
                 "share between domains", "against baseline"),
        rows=tuple(rows),
        heads=2,
        caption="Mean change of each domain's held-out loss over the last doubling of the steps, in nats per token: "
        "below 0 the domain still gained. Share between domains: the part of all interference Σ|Δ| − |ΣΔ| that is not "
        "within the domains; 0 where all of them moved the same way, 1 where only whole domains oppose one another. "
        "Means over seeds with 95 % t intervals; the difference to the baseline is paired by seed.",
    )  # fmt: skip


def _signed(found: Interval | None) -> str:
    return minus(f"{found['mean']:+.3f}") if found else MISSING
