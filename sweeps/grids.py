r"""Grids: a setting of a method that has several values makes one arm of each.

    SET="pcgrad.groups=sequence,domain"     the arms `pcgrad groups=sequence` and `pcgrad groups=domain`
    SET="focal.gamma=1,2 focal.mix=0,1"     four arms, each value of one with each of the other
    SET="mine.words=a\,b"                   no grid: `\,` is a comma of the value, `\\` a backslash

Placebos and combinations of a method have an arm of each value, too. A setting of the configuration goes to every
trial, so it has one value; a comma in a free text among them (data.path) is its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zslx.config.groups import GROUPS
from zslx.config.spec import Spec

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Point:
    """Settings of an arm, by method and name; `varied` are those that differ between the arms of a grid, by key."""

    settings: Mapping[str, Mapping[str, str]]
    varied: Mapping[str, str]

    def label(self, spec: str) -> str:
        """The spec with its own settings that differ: `pcgrad groups=domain`. Keys are whole where methods vary."""
        own = {key: value for key, value in self.varied.items() if method_of(key) in Spec.parse(spec).names}
        several = len(set(map(method_of, own))) > 1
        return " ".join([spec, *(f"{key if several else key.partition('.')[2]}={own[key]}" for key in own)])


def values_of(text: str) -> list[str]:
    """The values of a setting: what commas separate that no backslash stands before."""
    parts = [""]
    for piece in re.findall(r"\\[\\,]|,|.", text, re.DOTALL):
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += piece[-1]
    return parts


def text_of(values: Sequence[str]) -> str:
    """The inverse of `values_of`."""
    return ",".join(re.sub(r"([\\,])", r"\\\1", value) for value in values)


def points(spec: str, pairs: Pairs) -> list[Point]:
    """The settings that SET gives to a spec, one point for each of its arms. ValueError for a value given twice."""
    names = Spec.parse(spec).names
    own = [(key, values_of(value)) for key, value in pairs if is_method(key) and method_of(key) in names]
    for key, values in own:
        if again := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"SET: {key} has the value {again[0]!r} twice; give it once")
    found = []
    for chosen in itertools.product(*(values for _, values in own)):
        settings: dict[str, dict[str, str]] = {}
        for (key, _), value in zip(own, chosen, strict=True):
            settings.setdefault(method_of(key), {})[key.partition(".")[2]] = value
        varied = {key: value for (key, values), value in zip(own, chosen, strict=True) if len(values) > 1}
        found.append(Point(settings, varied))
    return found


def refuse_grids_of_the_configuration(pairs: Pairs) -> None:
    """ValueError where a setting of the configuration, which every trial has, is given several values."""
    for key, value in pairs:
        head, _, name = key.partition(".")
        if "," not in value or not (head in GROUPS and has_values(head, name)):
            continue
        advice = "compare its values in studies of their own"
        if key == "optim.lr":
            advice = "rate:0.5 is the baseline at half its rate; TUNE_RATE=1 (--tune-rate) finds the best of each arm"
        raise ValueError(
            f"SET: {key}={value!r}: a setting of the configuration goes to every trial and has one value; {advice}"
        )


def has_values(group: str, name: str) -> bool:
    """Whether there is such a setting, and it is a number or a choice: a comma is part of a free text."""
    fields = {f.name: f for f in dataclasses.fields(GROUPS[group])}  # type: ignore[arg-type]
    return name in fields and (fields[name].type != "str" or bool(fields[name].metadata.get("choices")))


def is_method(key: str) -> bool:
    """Whether a key of SET is a setting of a method, and none of the configuration."""
    return "." in key and method_of(key) not in GROUPS


def method_of(key: str) -> str:
    return key.partition(".")[0]
