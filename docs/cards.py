"""Writes docs/interventions.md from the cards of our own interventions and the results in docs/results.toml.

    python docs/cards.py

tests/unit/test_interventions_page.py checks that the page is up to date.
"""

from __future__ import annotations

import importlib
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from zslx.commands.interventions import PLACEBOS, allowed
from zslx.intervention.discovery import discover
from zslx.intervention.hooks import implemented
from zslx.intervention.registry import describe, load_class

PAGE = Path(__file__).parent / "interventions.md"
RESULTS = Path(__file__).parent / "results.toml"
# What a hook acts on; hooks that only watch or tell are left out.
ACTS = {
    "depth": "number of layers",
    "mixture": "mixture of the domains",
    "batch_size": "batch size",
    "sequence": "sequence length",
    "windows": "choice of the text",
    "context": "attention mask",
    "token_weights": "weights of tokens",
    "extra_loss": "loss",
    "group_weights": "weights of group gradients",
    "combine": "coordinates of the gradient",
    "filter": "gradient",
    "lr_factor": "learning rate",
    "optimizer": "update",
    "average": "weights that are evaluated",
}
HEAD = """# The interventions

{families}

`zslx interventions show NAME` prints the whole card of a method, and [write an intervention](write-an-intervention.md)
says how to add one. This page is made from the cards by `python docs/cards.py`.

Cost is the time of a step relative to the plain one; *Gramian* stands for one backward that also gives the Gramian of
the groups' gradients, 1.05 to 1.31 at 4M ([benchmarks](../benchmarks/README.md#step-of-every-method)). D is the
interference of loss changes ([instruments](instruments.md)). A placebo, `placebo:NAME`, does all that the method does,
but:

{placebos}

Where the column says none, the control is the baseline with an equally tuned learning rate. A setting `*.KEY` is one
of every method of the family; where a method has another default or range, it stands again by its name.

The latest result, where there is one, is the held-out loss at T against the baseline, and the answer by the [rule of
evidence](evidence.md); a screening of one seed has no answer. The link leads to the study, which says what else it
found, and what it could not have seen."""


def own() -> dict[str, list[dict[str, Any]]]:
    """The cards by family, controls last; each with what the method acts on."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, sources in discover().items():
        if (sources[0].module or "").startswith("interventions."):
            hooks = implemented(load_class(name, sources))
            acts = ", ".join(ACTS[hook] for hook in hooks if hook in ACTS)
            card = describe(name, sources[:1]) | {"acts": acts}
            found.setdefault(card["family"], []).append(card)
    return {family: found[family] for family in sorted(found, key=lambda f: (f == "controls", f))}


def results() -> dict[str, str]:
    """The latest result of each method, linked to the study in docs/studies.md that tells it."""
    found: dict[str, str] = {}
    for study in tomllib.loads(RESULTS.read_text(encoding="utf-8"))["study"]:
        link = f"[{study.pop('of')}](studies.md#{anchor(study.pop('heading'))})"
        for name, result in study.items():
            word = f"{result['word']}: " if "word" in result else ""
            found.setdefault(name, f"{word}{result['loss']} ({link})")
    return found


def anchor(heading: str) -> str:
    """The anchor that a page of Markdown has at a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def page() -> str:
    latest = results()
    placebos = "\n".join(f"- `{kind}`: {how}" for kind, how in PLACEBOS.items())
    found = own()
    families = " · ".join(f"[{title}](#{anchor(title)})" for title in map(titled, found))
    parts = [HEAD.format(placebos=placebos, families=families)]
    for family, cards in found.items():
        about = (importlib.import_module(f"interventions.{family}").__doc__ or "").strip()
        rows = [
            (
                f"`{c['name']}`",
                "<br>".join(filter(None, (does(c), c["source"]))),
                c["acts"] or "nothing",
                c["cost"],
                c["placebo"] or "none",
                latest.get(c["name"], ""),
            )
            for c in cards
        ]
        parts += [
            f"## {titled(family)}\n\n{about}",
            table(("name", "what it does, and its source", "acts on", "cost", "placebo", "latest result"), rows),
        ]
        if settings := settings_of(cards):
            parts.append(table(("setting", "default", "allowed", "meaning"), settings))
    return "\n\n".join(parts) + "\n"


def titled(family: str) -> str:
    """The heading of a family."""
    return family.replace("_", " ").capitalize()


def does(card: dict[str, Any]) -> str:
    """The card's first sentence, and the status of a method that cannot be asked for by its name."""
    first = re.split(r"(?<=[.?!])\s", " ".join(card["description"].split()))[0]
    return first if card["status"] == "available" else f"{first} ({card['status']})"


def settings_of(cards: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the settings. Those that every method of the family has stand first, once, as `*.KEY`, with what holds
    for most; and again where a method has another default or range."""
    found: dict[tuple[str, ...], list[str]] = {}
    for card in cards:
        for s in card["settings"]:
            row = (s["name"], shown(s["default"]), limits(s), s["help"])
            found.setdefault(row, []).append(card["name"])
    having = Counter(s["name"] for card in cards for s in card["settings"])
    most = max(1, len(cards) / 2)
    shared = {row for row, names in found.items() if having[row[0]] == len(cards) and len(names) > most}
    rows = [(f"`*.{row[0]}`", *row[1:]) for row in found if row in shared]
    single = [(name, row) for row, names in found.items() if row not in shared for name in names]
    order = [card["name"] for card in cards]
    single.sort(key=lambda pair: order.index(pair[0]))
    return rows + [(f"`{name}.{row[0]}`", *row[1:]) for name, row in single]


def limits(setting: dict[str, Any]) -> str:
    return allowed(setting).strip(" []") or ("true, false" if setting["type"] == "bool" else "any")


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
