"""`Config`, all the settings of a run, and the `key=value` overrides that change them. It needs no torch.

A Config is frozen and validated. It has one group of settings for each concern. The groups `model`, `data`, `optim`
and `train` and the intervention decide what is computed, so they are part of a trial's identity. The other two are
not: `instruments` only observes, and `run` says how the run's files are kept.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zslx.config.corpora import corpus_settings
from zslx.config.fields import convert, unknown
from zslx.config.groups import (
    GROUPS,
    DataConfig,
    Group,
    InstrumentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from zslx.config.sizes import model_preset
from zslx.config.spec import Spec, one_spelling


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run: an intervention with its settings, and one group of settings a concern.

    A group may be given as a mapping, `Config(train={"steps": 50})`. `parse_overrides` changes single keys.
    """

    intervention: str = "none"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # intervention name → its settings
    reference: str = ""  # run folder of the reference model, for methods that need one
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    instruments: InstrumentConfig = field(default_factory=InstrumentConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervention", one_spelling(self.intervention))  # it is part of the identity
        for label, group in GROUPS.items():
            given = getattr(self, label)
            if isinstance(given, Mapping):  # train={"steps": 50}
                object.__setattr__(self, label, _group(label, given))
            elif not isinstance(given, group):
                raise ValueError(f"{label}={given!r}: allowed are a {group.__name__} and a mapping of its settings")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with a dictionary for each group."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; unknown keys and bad values are errors."""
        pairs: list[tuple[str, Any]] = []
        for key, value in values.items():
            if key in GROUPS and isinstance(value, Mapping):
                pairs += [(f"{key}.{name}", item) for name, item in value.items()]
            elif key == "settings":
                pairs += [(f"{m}.{name}", item) for m, group in value.items() for name, item in group.items()]
            else:
                pairs.append((key, value))
        return override(Config(), pairs)


def _group(label: str, values: Mapping[str, Any]) -> Group:
    fields = {f.name: f for f in dataclasses.fields(GROUPS[label])}  # type: ignore[arg-type]
    if strange := [str(key) for key in values if key not in fields]:
        raise ValueError(unknown(f"{label}.{strange[0]}", [f"{label}.{name}" for name in fields]))
    return GROUPS[label](**{key: convert(f"{label}.{key}", value, fields[key]) for key, value in values.items()})


PLAIN = ("intervention", "reference")
NAMED = ("model", "data")  # keys that stand for several settings: model=0.4M, data=c4


def parse_overrides(config: Config, items: Iterable[str]) -> Config:
    """Apply `key=value` texts such as `optim.lr=1e-3`, `model=0.4M` or `pcgrad.groups=domain`."""
    pairs = []
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{item!r} is not of the form key=value, such as optim.lr=1e-3")
        pairs.append((key.strip(), value.strip()))
    return override(config, pairs)


def once(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The pairs as a list; ValueError where a key is given twice, since the order should not decide which counts."""
    pairs = list(pairs)
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{key} is given twice, as {seen[key]!r} and as {value!r}; give it once")
        seen[key] = value
    return pairs


def override(config: Config, pairs: Iterable[tuple[str, Any]]) -> Config:
    """`config` with dotted keys changed, each at most once; texts are read as the type of the field.

    Each group is rebuilt once, so that keys that must fit each other (width and heads) may come in any order.
    """
    pairs = once(pairs)
    plain: dict[str, Any] = {key: str(value) for key, value in pairs if key in PLAIN}
    config = dataclasses.replace(config, **plain)  # first: which method settings are known depends on it
    for _, value in (pair for pair in pairs if pair[0] == "model"):
        config = dataclasses.replace(config, model=model_preset(str(value)))
    groups: dict[str, dict[str, Any]] = {}
    for _, value in (pair for pair in pairs if pair[0] == "data"):
        groups["data"] = dict(corpus_settings(str(value)))
    settings = {name: dict(values) for name, values in config.settings.items()}
    for key, value in pairs:
        head, _, name = key.partition(".")
        if key in PLAIN + NAMED:
            continue
        if head in GROUPS and name:
            fields = {f.name: f for f in dataclasses.fields(GROUPS[head])}  # type: ignore[arg-type]
            if name not in fields:
                raise ValueError(unknown(key, [f"{head}.{n}" for n in fields]))
            groups.setdefault(head, {})[name] = convert(key, value, fields[name])
        elif name and head in Spec.parse(config.intervention).names:
            settings.setdefault(head, {})[name] = value
        else:
            raise ValueError(unknown_setting(key, config))
    if "tokenizer" in (data := groups.get("data", {})):  # it fixes the vocabulary, whatever the preset's is
        data.setdefault("vocab_size", 0 if data["tokenizer"] else DataConfig().vocab_size)
    changed = {head: dataclasses.replace(getattr(config, head), **values) for head, values in groups.items()}
    return dataclasses.replace(config, settings=settings, **changed)


def known_keys() -> list[str]:
    """Every key that is not a setting of an intervention."""
    return [*PLAIN, *NAMED, *(f"{g}.{f.name}" for g, c in GROUPS.items() for f in dataclasses.fields(c))]  # type: ignore[arg-type]


def unknown_setting(key: str, config: Config) -> str:
    """The message for a key that is neither one of `known_keys` nor a setting of the config's interventions."""
    head, _, name = key.partition(".")
    close = difflib.get_close_matches(head, GROUPS, n=1)
    if name and head not in GROUPS and not close:  # most likely a method that was not asked for
        asked = "none" if config.intervention == "none" else repr(config.intervention)
        return (
            f"unknown key {key!r}: settings of {head!r} need intervention={head}, and the intervention is {asked}; "
            f"groups of settings are {', '.join(GROUPS)}"
        )
    return unknown(key, known_keys())
