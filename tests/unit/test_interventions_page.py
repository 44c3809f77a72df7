"""docs/interventions.md: up to date, and complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest

from zslx.commands.interventions import FAMILIES, PLACEBOS
from zslx.intervention.discovery import discover
from zslx.intervention.hooks import HOOKS
from zslx.intervention.placebo import KINDS


@pytest.fixture(scope="module")
def maker(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("cards")


def test_the_page_is_up_to_date(maker: ModuleType):
    assert maker.PAGE.read_text(encoding="utf-8") == maker.page(), "run: python docs/cards.py"


def test_every_method_of_ours_stands_in_it_and_no_plugin(maker: ModuleType, plugins):
    (plugins / "theirs.py").write_text("class Theirs:\n    name = 'theirs'\n")
    cards = [card for cards in maker.own().values() for card in cards]
    ours = {name for name, [s, *_] in discover().items() if (s.module or "").startswith("interventions.")}
    assert {card["name"] for card in cards} == ours and "theirs" in discover()
    assert set(maker.own()) == {*FAMILIES, "controls"}
    assert set(PLACEBOS) == set(KINDS) and set(maker.ACTS) < set(HOOKS)
    # All but the two cards that act by nothing: the baseline's and that of the placebos.
    assert {card["name"] for card in cards if not card["acts"]} == {"none", "placebo"}


def test_settings_of_most_methods_stand_once(maker: ModuleType):
    shared = {"name": "power", "default": 1.0, "type": "float", "help": "strength | or not", "low": 0.0, "high": 2.0}
    other = shared | {"default": 0.5}
    flag = {"name": "flag", "default": True, "type": "bool", "help": "on"}
    cards = [{"name": n, "settings": [s]} for n, s in (("a", shared), ("b", shared), ("c", other), ("c2", flag))]
    rows = maker.settings_of(cards[:3])
    assert rows[0] == ("`*.power`", "1.0", "0.0 .. 2.0", "strength | or not") and rows[1][:2] == ("`c.power`", "0.5")
    assert maker.settings_of(cards[3:]) == [("`c2.flag`", "true", "true, false", "on")]
    assert maker.table(("x",), [("a | b",)]).splitlines()[-1] == "| a \\| b |"


def test_every_result_is_of_a_method_and_leads_to_a_study_that_tells_it(maker):
    studies = (maker.PAGE.parent / "studies.md").read_text(encoding="utf-8")
    sections = {maker.anchor(head): body for head, body in re.findall(r"^##+ (.*)\n((?:(?!^##).*\n)*)", studies, re.M)}
    names = {card["name"] for cards in maker.own().values() for card in cards}
    results = maker.results()
    assert results and results.keys() <= names
    for name, text in results.items():
        word, loss, place = re.fullmatch(r"(?:([a-z ]+): )?(.*) \([^(]*\(studies\.md#(.*)\)\)", text).groups()
        told = [line for line in sections[place].splitlines() if re.search(rf"\b{name}\b", line, re.IGNORECASE)]
        numbers = re.findall(r"[+−]?\d+\.?\d*", loss)
        assert any(all(number in line for number in numbers) for line in told + paragraphs(sections[place], name))
        assert (word or "") in sections[place], (name, word)


def paragraphs(section: str, name: str) -> list[str]:
    """Those that speak of a method."""
    return [text for text in section.split("\n\n") if re.search(rf"\b{name}\b", text, re.IGNORECASE)]
