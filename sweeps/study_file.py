"""A study as a file: everything that a command line of `zslx sweep` says of what is compared, in TOML.

    arms = ["pcgrad", "cosine", "pcgrad+cosine"]     as INTERVENTION: the preset adds the baseline and its controls
    preset = "laptop"
    sizes = ["0.1M", "0.2M"]                         the preset's where it is left out
    seeds = 6                                        how many, or which: [0, 1, 2]
    pack = "auto"
    until = "decided"                                may stop early (analysis/inference/looks.py); or "settled"

    [budget]                                         of each trial: steps, or tokens of the baseline
    steps = 4096

    [settings.optim]                                 as SET: every trial has a setting of the configuration
    lr = 2e-3

    [settings.pcgrad]                                of a method: its arms have it, one arm a value where it is a list
    groups = ["sequence", "domain"]

    [contrasts]                                      arm = "what it is compared with", beside the baseline
    "pcgrad+cosine" = "cosine"

    [tuning]
    rates = true                                     as TUNE_RATE=1; or search = 20, as SEARCH=20,
                                                     and beside it halving = true, as HALVING=1

    [fit]
    curve = "heldout"                                of L_d, t_d and r_d: the training loss where all train on one text

Only `arms` is needed. Compute and wall time are no budgets: they would give each size and each machine other steps, and
a trial's schedule is made for its steps. Paths in it are relative to the working directory, as on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.arm_search import checked
from sweeps.grids import is_method, method_of, text_of, values_of
from sweeps.study import seeds_text, split_pair
from zslx.config.fields import convert, unknown
from zslx.config.groups import GROUPS
from zslx.config.presets import preset
from zslx.config.run_config import once, override
from zslx.intervention import registry
from zslx.runs.json_files import write_atomic
from zslx.runs.shapes import Shape, check

SUFFIX = ".toml"
SHIPPED = Path(__file__).parent / "studies"
BUDGET = "train.steps"
UNTIL = ("decided", "settled")  # when a study may stop before its last seed
SHAPE: Mapping[str, Shape] = {
    "arms": [str],
    "preset?": str,
    "sizes?": [str],
    "seeds?": int | list,
    "pack?": str | int,
    "until?": str,
    "budget?": {"steps?": int, "tokens?": int},
    "settings?": dict,
    "contrasts?": {"*": str},
    "tuning?": {"rates?": bool, "search?": int, "halving?": bool},
    "fit?": {"curve?": str},
}
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study file says, checked but for what the plan of the study refuses (names and values of settings).

    `seeds` is empty for the preset's; a value of `settings`, by their keys, is a list for a grid.
    """

    arms: tuple[str, ...]
    preset: str = "laptop"
    sizes: tuple[str, ...] = ()
    seeds: int | tuple[int, ...] = ()
    pack: str = "auto"
    until: str | None = None
    steps: int | None = None
    tokens: int | None = None
    settings: Mapping[str, Value | Sequence[Value]] = field(default_factory=dict)
    contrasts: Mapping[str, str] = field(default_factory=dict)
    tune_rate: bool = False
    search: int | None = None
    halving: bool = False
    curve: str = ""

    @property
    def overrides(self) -> list[str]:
        """Its settings and budget as those of SET."""
        found = [f"{key}={_text(key, value)}" for key, value in self.settings.items()]
        if self.tokens is not None:
            config = override(preset(self.preset).config, _data(found))
            step = config.data.batch_size * config.data.seq_len
            if self.tokens < step:
                raise ValueError(f"budget.tokens={self.tokens}: a step has {step}, and a trial at least one")
            return [*found, f"{BUDGET}={self.tokens // step}"]
        return [*found, *([f"{BUDGET}={self.steps}"] if self.steps is not None else [])]

    def to_dict(self) -> dict[str, Any]:
        """What the file holds, without what is left to its default."""
        settings: dict[str, Any] = {}
        for key, value in self.settings.items():
            head, _, name = key.partition(".")
            if name:
                settings.setdefault(head, {})[name] = value
            else:
                settings[head] = value
        budget = {"steps": self.steps, "tokens": self.tokens}
        tuning = {"rates": self.tune_rate, "search": self.search, "halving": self.halving}
        found = {
            "arms": list(self.arms),
            "preset": self.preset,
            "sizes": list(self.sizes),
            "seeds": self.seeds if isinstance(self.seeds, int) else list(self.seeds),
            "pack": "" if self.pack == "auto" else self.pack,
            "until": self.until or "",
            "budget": {name: value for name, value in budget.items() if value is not None},
            "settings": settings,
            "contrasts": dict(self.contrasts),
            "tuning": {key: value for key, value in tuning.items() if value},
            "fit": {"curve": self.curve} if self.curve else {},
        }
        return {key: value for key, value in found.items() if value not in ("", [], {})}

    def write(self, path: Path) -> None:
        """Replace the file."""
        import tomli_w

        head = f"# Trained and compared by: zslx sweep {path.name}\n\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (head + tomli_w.dumps(self.to_dict())).encode())


def read(name: str) -> tuple[Path, StudyFile]:
    """A study file by its path, or the name of one that comes with zslx. ValueError names the file and the key."""
    path = find(name)
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: no study file: {error}") from None
    _known(path, found, SHAPE)
    check(path, found, SHAPE)
    if not found["arms"]:
        raise ValueError(f"{path}: arms is empty: name an intervention (zslx interventions list)")
    seeds, budget, tuning = found.get("seeds", ()), found.get("budget", {}), found.get("tuning", {})
    check(path, {"seeds": seeds if isinstance(seeds, list) else []}, {"seeds": [int]})
    if len(budget) > 1:
        raise ValueError(f"{path}: budget has steps and tokens: give one of them")
    if found.get("until", UNTIL[0]) not in UNTIL:
        raise ValueError(f"{path}: until={found['until']!r}: allowed are {', '.join(UNTIL)}")
    if "search" in tuning:
        if tuning.get("rates"):
            raise ValueError(f"{path}: tuning has rates and search: give one of them")
        checked(tuning["search"])
    elif tuning.get("halving"):
        raise ValueError(f"{path}: tuning has halving without search: points of a search alone are cut")
    for key, value in budget.items():
        if value < 1:
            raise ValueError(f"{path}: budget.{key}={value}: must be at least 1")
    return path, StudyFile(
        arms=tuple(found["arms"]),
        preset=found.get("preset", "laptop"),
        sizes=tuple(found.get("sizes", ())),
        seeds=seeds if isinstance(seeds, int) else tuple(seeds),
        pack=str(found.get("pack", "auto")),
        until=found.get("until"),
        **budget,
        settings=dict(_settings(path, found.get("settings", {}))),
        contrasts=found.get("contrasts", {}),
        tune_rate=tuning.get("rates", False),
        search=tuning.get("search"),
        halving=tuning.get("halving", False),
        curve=found.get("fit", {}).get("curve", ""),
    )


def find(name: str) -> Path:
    """The path of a study file; ValueError lists those that come with zslx."""
    for path in (Path(name), SHIPPED / Path(name).name):
        if path.is_file():
            return path
    raise ValueError(
        f"{name}: no such file; with zslx come {', '.join(p.name for p in sorted(SHIPPED.glob('*.toml')))}"
    )


def _known(path: Path, found: Mapping[str, Any], shape: Mapping[str, Shape], inside: str = "") -> None:
    """ValueError, with the nearest names, for a key that a study file has not."""
    keys = {key.removesuffix("?"): part for key, part in shape.items()}
    for key, value in found.items():
        if key not in keys and "*" not in keys:
            raise ValueError(f"{path}: " + unknown(inside + key, [inside + name for name in keys]))
        if isinstance(value, Mapping) and isinstance(inner := keys.get(key), Mapping):
            _known(path, value, inner, f"{key}.")


def _settings(path: Path, found: Mapping[str, Any]) -> Iterator[tuple[str, Value | Sequence[Value]]]:
    """(key, value) of each setting, `pcgrad.groups`; a list where it has several values."""
    for head, inner in found.items():
        own = {f"{head}.{name}": v for name, v in inner.items()} if isinstance(inner, dict) else {head: inner}
        for key, value in own.items():
            several = value if isinstance(value, list) else [value]
            if wrong := [v for v in several if not isinstance(v, str | int | float)]:
                raise ValueError(f"{path}: settings.{key}: {wrong[0]!r} is no text, number, true or false")
            if isinstance(value, list) and not (value and is_method(key)):
                raise ValueError(f"{path}: settings.{key}={value}: a method's setting alone can have several values")
            yield key, value


def _text(key: str, value: Value | Sequence[Value]) -> str:
    """A value as SET has it."""
    values = [value] if isinstance(value, str | int | float) else value
    texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return text_of(texts) if is_method(key) else texts[0]


def _data(overrides: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in map(split_pair, overrides) if method_of(key) == "data"]


# To and from the command line.


def with_file(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments that a study file stands for, where one is named in place of interventions; else as they are."""
    if not args.intervention.strip().endswith(SUFFIX):
        return argparse.Namespace(**vars(args) | {"preset": args.preset or "laptop"})
    path, found = read(args.intervention.strip())
    given = [
        name
        for name in ("preset", "sizes", "seeds", "steps", "set", "tune_rate", "search", "halving", "until")
        if vars(args)[name]
    ]
    given += ["pack"] * (args.pack != "auto")
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{path} says what is compared, and {options} says it again: change a copy of the file")
    seeds = str(found.seeds) if isinstance(found.seeds, int) else seeds_text(found.seeds) if found.seeds else ""
    decided = {
        "intervention": ",".join(found.arms),
        "preset": found.preset,
        "sizes": " ".join(found.sizes),
        "seeds": seeds,
        "set": found.overrides,
        "pack": found.pack,
        "until": found.until,
        "tune_rate": found.tune_rate,
        "search": found.search,
        "halving": found.halving,
        "contrasts": found.contrasts,
        "curve": found.curve,
        "file": str(path),
    }
    return argparse.Namespace(**vars(args) | decided)


def of(args: argparse.Namespace, arms: Sequence[str], sizes: Sequence[str], seeds: Sequence[int]) -> StudyFile:
    """The study file that says the same as a command line, whose settings a plan has found right."""
    given = [f"{BUDGET}={args.steps}"] if args.steps is not None else []
    values: dict[str, Any] = {key: _typed(key, value) for key, value in once(map(split_pair, [*args.set, *given]))}
    whole = tuple(seeds) == tuple(range(len(seeds)))
    return StudyFile(
        arms=tuple(arms),
        preset=args.preset,
        sizes=tuple(sizes),
        seeds=len(seeds) if whole and seeds else tuple(seeds),
        pack=args.pack,
        until=args.until,
        steps=values.pop(BUDGET, None),
        settings=values,
        contrasts=args.contrasts,
        tune_rate=args.tune_rate,
        search=args.search,
        halving=args.halving,
        curve=args.curve,
    )


def _typed(key: str, text: str) -> Value | list[Value]:
    """A setting as a value of its own type, or as a list of several."""
    head, _, name = key.partition(".")
    if not name:
        return text
    of = GROUPS[head] if head in GROUPS else registry.load_class(head)
    kind = {f.name: f for f in dataclasses.fields(of)}[name]  # type: ignore[arg-type]
    values: list[Value] = [convert(key, v, kind) for v in (values_of(text) if is_method(key) else [text])]
    return values[0] if len(values) == 1 else values
