"""The report of a study as a list of blocks, in the order in which a sceptical reader asks.

The question and the answer; headline table; loss curves with fits and breaks; D and M; paired differences and what they
rest on; deceleration; who gains at whose expense; gradient interference against chance; decomposition of the loss;
downstream tasks; mechanism; trends over sizes beside the published models, and the scale-equivalent gain; tuning; cost;
what the intervention did; failures; how to reproduce it, and the rule; details of the fits. Everything comes from the
records: `comparison` (analysis/inference/compare.py) and the curves of its trials. A section without data is left out.
page.py renders the blocks.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from analysis.inference.answers import look, looked_before, qualified
from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import PooledBreaks
from analysis.inference.rows import Answer as ArmAnswer
from analysis.inference.rows import Comparison
from analysis.inference.size_trends import LEAST_SIZES
from analysis.numbers import MISSING, count, difference, number
from analysis.report import break_blocks as pooled
from analysis.report import instrument_blocks as instruments
from analysis.report import size_figures as scale
from analysis.report import tables as tables
from analysis.report.blocks import Answer, Block, Heading, Table, Text
from analysis.report.downstream_blocks import downstream
from analysis.report.figures import Figures
from analysis.report.headline import headline
from analysis.report.held_out_blocks import held_out
from analysis.report.imported_blocks import imported
from analysis.report.page import render
from analysis.report.tuning_blocks import tuning
from zslx.runs.json_files import write_atomic


def write_report(breaks: PooledBreaks, out: Path, comparison: Comparison | None = None) -> Path:
    """Write the HTML report of a loaded study to `out`."""
    comparison = comparison or compare_study(breaks)
    figures = Figures(breaks)
    page = render(blocks(breaks, comparison), title=f"zslx: {comparison['study']}", choices=figures.choices())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode("utf-8", errors="replace"))
    return out


def blocks(breaks: PooledBreaks, comparison: Comparison) -> list[Block]:
    """The whole report."""
    measures, figures, c = breaks.measures, Figures(breaks), comparison
    sections: list[tuple[str, str, list[Block | None]]] = [
        ("The arms at a glance", "table", [headline(c)]),
        (
            "Loss curves",
            "loss",
            [figures.losses(), figures.over_sizes(), figures.differences(), figures.slopes(), tables.tail_slopes(c)],
        ),
        ("Loss interference", "interference", [*instruments.interference(figures), instruments.plane(figures)]),
        (
            "Paired differences",
            "differences",
            [
                figures.forest(c["contrasts"], c["declared_contrasts"]),
                figures.secondary(c["contrasts"], tables.MEASURE_NAMES),
                *tables.contrast_tables(c),
                tables.seeds_needed(c),
            ],
        ),
        ("Deceleration", "deceleration", [pooled.plane(figures, c), pooled.difference_table(c), pooled.parts_table(c)]),
        ("Who gains at whose expense", "heldout", [*held_out(figures, c)]),
        ("Gradient interference", "gradients", [*instruments.gradients(figures)]),
        ("Decomposition of the loss", "decomposition", [*instruments.decomposition(figures)]),
        ("Downstream tasks", "downstream", [*downstream(figures)]),
        ("Better loss through less interference?", "mechanism", [tables.mechanism(c)]),
        (
            "Over model sizes",
            "sizes",
            [scale.over_sizes(figures, c), *over_sizes(figures, c)],
        ),
        ("Imported curves", "imported", [*imported(breaks.study.imported, c)]),
        ("Tuning", "tuning", tuning(figures, c)),
        ("Cost", "cost", [scale.compute_matched(figures, c), tables.cost(c)]),
        ("What the interventions did", "did", [tables.training(measures), *(figures.metrics())]),
        ("Failures", "failures", [tables.failures(c)]),
        ("How to reproduce this", "reproduce", [*reproduce(c)]),
        ("The fits in detail", "fits", [pooled.pooled_table(c), pooled.cut_table(breaks, c), tables.break_status(c)]),
    ]
    found = answers(c)
    for title, anchor, section in sections:
        if there := [block for block in section if block is not None]:
            found += [Heading(text=title, anchor=anchor), *there]
    return found


def over_sizes(figures: Figures, comparison: Comparison) -> list[Block | None]:
    """Scale-equivalent gains and trends, or what they need."""
    if (there := len(comparison["sizes"])) < LEAST_SIZES:
        needed = f"Trends over sizes and the scale-equivalent gain need {LEAST_SIZES} sizes; this study has {there}."
        return [Text(text=needed)]
    return [
        scale.gains(figures, comparison),
        tables.gains(comparison),
        tables.trends(comparison),
        tables.laws(comparison),
    ]


def answers(comparison: Comparison) -> list[Block]:
    """The question and the answer: of one arm all that it rests on, of several the best first, ranked in one table."""
    trials = sum(comparison["trials"].values())
    sizes = ", ".join(s["size"] for s in comparison["sizes"])
    about = (
        f"Study {comparison['study']}: {count(len(comparison['arms']), 'arm')} at "
        f"{count(len(comparison['sizes']), 'size')} ({sizes}), {count(len(comparison['seeds']), 'seed')}, "
        f"{comparison['trials'].get('finished', 0)} of {trials} trials finished"
        + (f", {str(comparison['created'])[:10]}" if comparison["created"] else "")
    )
    told: list[Block] = [Text(text=about)]
    if comparison["looks"]:
        own = "Those are the intervals of paired differences on this page; those of an arm's own numbers are of 95 %."
        told.append(Text(text=f"{look(comparison['looks'])}. {own}"))
    told += [Text(text=line) for line in looked_before(comparison)]
    asked = comparison["answers"]
    if not asked:
        return [*told, Text(text="No arm is asked about in this study: controls and baseline only.")]
    if len(asked) > 1:
        return [*told, together(comparison), ranked(comparison), reasons(comparison)]
    [answer] = asked
    notes = [reason[:1].upper() + reason[1:] + "." for reason in answer["reasons"]]
    if answer["verdict_command"]:
        notes.append(f"For a verdict: {answer['verdict_command']}")
    card = Answer(
        question=question(answer["arm"], answer["against"], comparison),
        sentence=answer["sentence"],
        word=qualified(answer["word"], answer["beyond_lr_decay"]),
        exploratory=answer["exploratory"],
        notes=tuple(notes),
    )
    return [*told, card]


def by_effect(comparison: Comparison) -> list[ArmAnswer]:
    """The answers in the order of the effect on log loss, the best first; those without one last."""
    every = comparison["contrasts"] + comparison["declared_contrasts"]
    effects = {(row["arm"], row["against"]): row["primary"] for row in every}

    def effect(answer: ArmAnswer) -> float:
        primary = effects[answer["arm"], answer["against"]]
        return math.inf if primary is None else primary["estimate"]

    return sorted(comparison["answers"], key=effect)


def together(comparison: Comparison) -> Answer:
    """One answer about several arms: how many got which word, and what the best of them does."""
    asked = by_effect(comparison)
    words = Counter(answer["word"] for answer in asked)
    command = next((answer["verdict_command"] for answer in asked if answer["verdict_command"]), None)
    return Answer(
        question=f"Does any of {len(asked)} methods lower the loss, and relieve its deceleration, without scale?",
        sentence=f"The lowest loss: {asked[0]['sentence']}",
        word=" · ".join(f"{word}: {n} of {len(asked)}" for word, n in words.items()),
        exploratory=any(answer["exploratory"] for answer in asked),
        notes=(f"For a verdict: {command}",) if command else (),
    )


def reasons(comparison: Comparison) -> Table:
    """The whole answer about each of several arms, and what it rests on."""
    return Table(
        columns=("arm", "answer", "why"),
        rows=tuple((a["arm"], a["sentence"], "; ".join(a["reasons"]) or MISSING) for a in by_effect(comparison)),
        folded="Each answer in full",
        prose=True,
    )


def question(arm: str, against: str, comparison: Comparison) -> str:
    """What the study asks about an arm."""
    declared = any((row["arm"], row["against"]) == (arm, against) for row in comparison["declared_contrasts"])
    of = f" of {against}" if declared else ""
    return f"Does {arm} lower the loss{of}, and relieve its deceleration, without scale?"


def ranked(comparison: Comparison) -> Table:
    """The arms in the order of their effect, the best first, in place of a card each."""
    every = comparison["contrasts"] + comparison["declared_contrasts"]
    contrasts = {(row["arm"], row["against"]): row for row in every}
    curve = comparison["protocol"]["curve"]
    rows = []
    for answer in by_effect(comparison):
        row = contrasts[answer["arm"], answer["against"]]
        name = answer["arm"] if row in comparison["contrasts"] else f"{answer['arm']} against {answer['against']}"
        averaged = row["deceleration"][curve]["averaged"]
        word = ("exploratory: " if answer["exploratory"] else "") + qualified(answer["word"], answer["beyond_lr_decay"])
        texts = (
            difference(row["primary"]), difference(row["placebo"] if row["placebo"] else None),
            difference(averaged["L_d"]), difference(averaged["t_d"]), number(averaged["r_d"]),
        )  # fmt: skip
        rows.append((name, word, *texts))
    return Table(
        columns=("arm", "answer", "loss at T against baseline or as said", "against its placebo", "L_d", "t_d", "r_d"),
        rows=tuple(rows),
        heads=1,
        caption="The arms in the order of their effect on held-out loss at T. L_d, t_d and r_d: paired differences to "
        "the baseline, averaged over the sizes at which the break of both is identified.",
    )


def reproduce(comparison: Comparison) -> list[Block | None]:
    """Command, versions, hardware, identities, the rule."""
    found = comparison["provenance"]
    facts = [(k, str(v)) for part in ("versions", "hardware") for k, v in found[part].items() if v is not None]
    facts += [("revision", ", ".join(found["revisions"]) or MISSING)]
    facts += [(k, v) for k, v in found["environment"].items() if k in ("numerics", "corpus", "device")]
    arms = tuple(
        (
            a["name"],
            a["intervention"],
            a["role"],
            json.dumps(a["settings"], ensure_ascii=False) if a["settings"] else "",
        )
        for a in comparison["arms"]
    )
    identities = tuple((i["arm"], i["size"], str(i["seed"]), i["identity"]) for i in found["identities"])
    return [
        Text(text=comparison["command"] or "(the study does not name its command)", mono=True),
        Table(columns=("arm", "intervention", "role", "settings"), rows=arms, folded="Arms and their settings"),
        Table(columns=("what", "value"), rows=tuple(facts), folded="Versions and hardware"),
        Table(
            columns=("arm", "size", "seed", "identity"),
            rows=identities,
            heads=2,
            folded="Identities of the trials",
        ),
        Text(text=comparison["rule"], mono=True, folded="The rule by which the answer was given"),
    ]
