"""The leaderboard as blocks, which become docs/leaderboard.md and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.leaderboard.entries import COLUMNS
from analysis.leaderboard.protocol import NAME, SCALES, controls, in_words
from analysis.numbers import MISSING
from analysis.report.blocks import Answer, Block, Heading, Table, Text

Entry = Mapping[str, Any]
Row = Mapping[str, Any]
NAMES = ("loss at T", "L_d", "t_d", "r_d", "D at matched loss", "step cost", "scale-equivalent gain")
SUBMIT = """\
zslx sweep METHOD --preset verdict --results results     # at laptop sizes; gpu-verdict.toml, its arms changed: on a GPU
zslx archive results METHOD.zip                          # the study as one file
zslx verify METHOD.zip                                   # what everybody else will run
cp METHOD.zip leaderboard/ && make leaderboard           # its entry, and these pages"""


def blocks(entries: Sequence[Entry]) -> list[Block]:
    """The whole leaderboard."""
    found: list[Block] = [opening(entries)]
    apart: list[tuple[Entry, Row]] = []
    for scale in SCALES:
        own = [(entry, row) for entry in entries for row in entry["rows"] if entry["scale"] == scale.name]
        inside = [(entry, row) for entry, row in own if not entry["departures"] and not row["departures"]]
        apart += [pair for pair in own if pair not in inside]
        found += [Heading(text=f"Scale: {scale.name}", anchor=scale.preset), *standing(inside)]
    apart += [(entry, row) for entry in entries for row in entry["rows"] if not entry["scale"]]
    unread = [entry for entry in entries if not entry["rows"]]
    if apart or unread:
        found += [Heading(text="Outside the protocol", anchor="outside"), outside(apart, unread)]
    return [*found, *the_protocol(), *archives(entries), *submitting()]


def opening(entries: Sequence[Entry]) -> Answer:
    rows = [row for entry in entries for row in entry["rows"]]
    return Answer(
        question="Which training methods do what scale does?",
        word=f"{len(rows)} answers from {sum(bool(e['rows']) for e in entries)} studies that verify",
        exploratory=False,
        sentence=f"Results of training methods under one protocol, {NAME}, at two scales. Every number follows from an "
        "archive of records that zslx verify passed when it was added. Each method is compared with its own study's "
        "baseline, paired by seed.",
    )


def standing(pairs: Sequence[tuple[Entry, Row]]) -> Iterator[Block]:
    """The rows of one scale, the best first, and below them those of methods compared with others than the baseline."""
    ordered = sorted(pairs, key=by_effect)
    if not ordered:
        yield Text(text="No study of this scale follows the whole protocol yet.")
    if plain := [cells(entry, row) for entry, row in ordered if not row["against"]]:
        yield Table(
            columns=("method", "answer", *NAMES, "study"),
            rows=tuple(plain),
            caption="In the order of the effect on held-out loss at T. Paired differences to the baseline with 95 % "
            "intervals (over all looks, where looks were planned), averaged over sizes; L_d, t_d and r_d over the "
            "sizes at which the break of both arms is identified. D: of one step on held-out text, compared when the "
            "baseline was as good; lower is less zero-sum learning. Step cost: over the baseline's.",
        )
    against = [(entry, row) for entry, row in ordered if row["against"]]
    if against:
        yield Table(
            columns=("method", "against", "answer", *NAMES, "study"),
            rows=tuple((row["method"], row["against"], *cells(entry, row)[1:]) for entry, row in against),
            caption="Contrasts that studies declared: differences to the arm in the second column, in place of the "
            "baseline, so that no row is comparable with those above. Step cost: over the baseline's.",
        )


def cells(entry: Entry, row: Row) -> tuple[str, ...]:
    return (row["method"], row["word"], *(row[key] for key in COLUMNS), study_of(entry))


def study_of(entry: Entry) -> str:
    return f"{entry['study']} {entry['created']}" + ("; tuning not verified" if entry["tuned"] else "")


def by_effect(pair: tuple[Entry, Row]) -> float:
    effect = pair[1]["effect"]
    return math.inf if effect is None else float(effect)


def outside(pairs: Sequence[tuple[Entry, Row]], unread: Sequence[Entry]) -> Table:
    """What departs from the protocol, and in what."""
    rows = [
        (named(row), row["word"], row["loss"], study_of(entry), why(entry, row))
        for entry, row in sorted(pairs, key=by_effect)
    ]
    rows += [(MISSING, MISSING, MISSING, entry["archive"]["file"], why(entry)) for entry in unread]
    return Table(
        columns=("method", "answer", "loss at T", "study", "departs in"),
        rows=tuple(rows),
        prose=True,
        caption="Studies that verify, or do not, and are not comparable with those above, each with the reason.",
    )


def named(row: Row) -> str:
    return f"{row['method']} against {row['against']}" if row["against"] else str(row["method"])


def why(entry: Entry, row: Row | None = None) -> str:
    return "; ".join([*entry["departures"], *(row["departures"] if row else ())]) or "nothing is asked about in it"


def the_protocol() -> Iterator[Block]:
    yield Heading(text=f"The protocol: {NAME}", anchor="protocol")
    yield Table(
        columns=("scale", "sizes", "tokens a trial", "seeds", "command"),
        rows=tuple(map(in_words, SCALES)),
        caption=f"{controls()} Every other setting is that of the command's preset; the text is the one that every "
        "machine has. Looks before the tenth seed are allowed where they were planned. The rule is in evidence.md, and "
        "nothing else decides a word: a method without a placebo has the baseline's rates as its control.",
    )


def archives(entries: Sequence[Entry]) -> Iterator[Block]:
    if entries:
        yield Heading(text="The archives", anchor="archives")
        kept = [(entry, entry["archive"]) for entry in entries]
        yield Table(
            columns=("archive", "study", "MB", "sha256", "where"),
            rows=tuple(
                (a["file"], e["study"] or MISSING, f"{a['bytes'] / 1e6:.1f}", a["sha256"], a["where"] or MISSING)
                for e, a in kept
            ),
            caption="An archive has the records of every step, from which zslx verify computes each number; it is too "
            "large for the repository, which has its entry. Whoever gets the archive from its authors sees by the "
            "sha256 that it is the one that was verified.",
        )


def submitting() -> Iterator[Block]:
    yield Heading(text="How to submit a method", anchor="submit")
    yield Text(text=SUBMIT, mono=True)
    yield Text(
        text="Send leaderboard/METHOD.json and the two pages as a change to the repository, and put the archive where "
        "others can get it: its address goes into the entry's archive.where. Whoever reviews the change verifies the "
        "archive, and trains one of its trials again: on the same kind of machine it gives the same records, byte for "
        "byte."
    )
