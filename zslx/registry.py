"""Interventions by name: where they are found, what is known of them before import, how a spec is loaded.

A spec is names joined by `+`, each possibly `placebo:name`: `pcgrad`, `pcgrad+cosine`, `placebo:pcgrad`.
Places, in this order: the `interventions` folder beside `zslx`; the folders in ZSLX_PLUGINS (default: `plugins`
in the working directory); entry points `zslx.interventions` of installed packages. One name in two places is an
error. Discovery reads source text alone; only a plugin that is asked for by name is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from zslx.config import convert, unknown
from zslx.intervention import Intervention
from zslx.places import ROOT, ours

ENTRY_POINTS = "zslx.interventions"
PLACEBO = "placebo:"


@dataclass(frozen=True)
class Source:
    """Where one name is defined: a file and, for a package's module, its import path."""

    name: str
    path: Path
    module: str | None
    class_node: ast.ClassDef


def discover() -> dict[str, list[Source]]:
    """Every name that can be asked for, with the places that define it (more than one is a clash)."""
    found: dict[str, list[Source]] = {}
    for source in [*_from_package(), *_from_folders(), *_from_entry_points()]:
        found.setdefault(source.name, []).append(source)
    return dict(sorted(found.items()))


def plugin_folders() -> list[Path]:
    given = os.environ.get("ZSLX_PLUGINS")
    return [Path(p).resolve() for p in given.split(os.pathsep) if p] if given else [Path("plugins").resolve()]


def _from_package() -> Iterator[Source]:
    for path in sorted((ROOT / "interventions").glob("*/*.py")):
        yield from _classes(path, ".".join(path.relative_to(ROOT).with_suffix("").parts))


def _from_folders() -> Iterator[Source]:
    for folder in plugin_folders():
        if folder != ROOT / "interventions" and folder.is_dir():
            for path in sorted(folder.rglob("*.py")):
                if not path.name.startswith("test_"):
                    yield from _classes(path, None)


def _from_entry_points() -> Iterator[Source]:
    for point in _entry_points(tuple(sys.path)):
        top, *rest = point.module.split(".")
        spec = importlib.util.find_spec(top)  # imports nothing, unlike find_spec of a submodule
        for base in spec.submodule_search_locations or [] if spec and rest else []:
            stem = Path(base).joinpath(*rest)
            path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
            yield from (s for s in _classes(path, point.module) if s.name == point.name)
        if spec and not rest and spec.origin:
            yield from (s for s in _classes(Path(spec.origin), point.module) if s.name == point.name)


@cache
def _entry_points(search_path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=ENTRY_POINTS)


def _classes(path: Path, module: str | None) -> Iterator[Source]:
    """The classes of a file that set `name` to a text. A file that does not parse defines nothing here; asking
    for its name (the file's) reports why."""
    try:
        stat = path.stat()
        tree = _parsed(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
        if module is None:
            empty = ast.ClassDef(name="", bases=[], keywords=[], body=[], decorator_list=[])
            yield Source(path.stem, path, None, empty)
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (name := literals(node).get("name")):
            yield Source(str(name), path, module, node)


@cache
def _parsed(path: Path, stamp: tuple[int, int, int]) -> ast.Module:
    """The syntax tree of a file; `stamp` tells its versions apart."""
    return ast.parse(path.read_text(encoding="utf-8"))


def literals(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes set to literals."""
    values = {}
    for item in node.body:
        if isinstance(item, ast.Assign) and len(item.targets) == 1:
            target, value = item.targets[0], item.value
        elif isinstance(item, ast.AnnAssign) and item.value is not None:
            target, value = item.target, item.value
        else:
            continue
        if isinstance(target, ast.Name):
            try:
                values[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return values


def describe(name: str, sources: list[Source]) -> dict[str, Any]:
    """Metadata of one name, as plain JSON values: `Intervention.card` of our own classes; of other people's what
    their source text says, for listing a plugin must not run it."""
    source = sources[0]
    if source.module and source.module.startswith("interventions."):
        card = dict(load_class(name, sources).describe())
    else:
        node, values = source.class_node, literals(source.class_node)
        doc = ast.get_docstring(node) or ""
        card = {key: values.get(key, "") for key in ("source", "cost")}
        card |= {"name": name, "family": values.get("family") or "plugin", "description": doc}
        card |= {"settings": _settings_of(node), "placebo": values.get("placebo")}
        card["status"] = str(values.get("status", "available"))
    card["summary"] = card["description"].strip().partition("\n")[0]
    if len(sources) > 1:
        card["status"] = f"absent: defined twice: {' and '.join(str(s.path) for s in sources)}"
    elif not source.class_node.body:
        card["status"] = f"absent: {source.path} cannot be parsed"
    return card


def _settings_of(node: ast.ClassDef) -> list[dict[str, Any]]:
    """The settings that a class declares in its text, and those of the bases that zslx gives."""
    from zslx import surgery

    rows = []
    for base in node.bases:
        cls = getattr(surgery, base.id, None) if isinstance(base, ast.Name) else None
        if isinstance(cls, type) and issubclass(cls, Intervention):
            rows += cls.describe()["settings"]
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        call = item.value
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "setting" and call.args:
            row: dict[str, Any] = {"name": item.target.id, "type": ast.unparse(item.annotation), "help": ""}
            for key, value in [
                *zip(("default", "help"), call.args, strict=False),
                *((k.arg, k.value) for k in call.keywords),
            ]:
                try:
                    row[str(key)] = ast.literal_eval(value)
                except ValueError:
                    row[str(key)] = ast.unparse(value)
            rows.append(row)
    return rows


def split(spec: str) -> list[tuple[bool, str]]:
    """A spec's parts as (is a placebo, name)."""
    parts = [part.strip() for part in spec.split("+")]
    return [(part.startswith(PLACEBO), part.removeprefix(PLACEBO)) for part in parts]


def resolve(spec: str) -> list[str]:
    """The names in a spec, each known; ValueError with the closest names otherwise. Imports no plugin."""
    found = discover()
    for _, name in split(spec):
        _place(name, found)
    return [name for _, name in split(spec)]


def _place(name: str, found: Mapping[str, list[Source]]) -> Source:
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown intervention {name!r}{hint} There are: {', '.join(found)}")
    places = found[name]
    if len(places) > 1:
        raise ValueError(f"intervention {name!r} is defined twice: {' and '.join(str(s.path) for s in places)}")
    status = str(literals(places[0].class_node).get("status", "available"))
    if status.startswith(("absent", "available as")):
        raise ValueError(f"intervention {name!r} is {status}")
    return places[0]


def load_class(name: str, sources: list[Source] | None = None) -> type[Intervention]:
    """The class of one name, whether it can be run (`sources` not given) or only described."""
    source = sources[0] if sources else _place(name, discover())
    try:
        module = _import(source)
    except Exception as error:
        raise ValueError(f"intervention {name!r} ({source.path}) fails on import: {error!r}") from error
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Intervention) and vars(value).get("name") == name:
            return value
    raise ValueError(f"{source.path} defines no subclass of zslx.Intervention with name = {name!r}")


def _import(source: Source) -> ModuleType:
    if source.module:
        if source.module.startswith("interventions."):
            ours("interventions")
        return importlib.import_module(source.module)
    # A package for each folder: files of one name do not meet, and `from .sibling import x` works.
    folder = source.path.parent
    package = f"zslx_plugins.folder_{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    for name, path in (("zslx_plugins", []), (package, [str(folder)])):
        sys.modules.setdefault(name, ModuleType(name)).__path__ = path
    label = f"{package}.{source.path.stem}"
    spec = importlib.util.spec_from_file_location(label, source.path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def load_intervention(name: str, **settings: Any) -> Intervention:
    """One intervention, ready to use; `placebo:NAME` gives the placebo of NAME with the same settings."""
    if "+" in name:
        raise ValueError(f"{name!r} names several interventions: one is wanted here")
    [(is_placebo, plain)] = split(name)
    cls = load_class(plain)
    if is_placebo:
        cls = importlib.import_module("interventions.controls.placebo").placebo_of(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in settings:
        if key not in fields:
            known = [f"{plain}.{f}" for f in fields]
            raise ValueError(
                unknown(f"{plain}.{key}", known) if known else f"{plain} has no settings, so {plain}.{key} is none"
            )
    return cls(**{key: convert(f"{plain}.{key}", value, fields[key]) for key, value in settings.items()})


def load_spec(spec: str, settings: Mapping[str, Mapping[str, Any]]) -> list[Intervention]:
    """Every intervention of a spec (none of them for `none`), no two claiming the same exclusive place."""
    methods: list[Intervention] = []
    claimed: dict[str, str] = {}
    for is_placebo, name in split(spec):
        method = load_intervention((PLACEBO if is_placebo else "") + name, **settings.get(name, {}))
        for place in sorted(method.claims()):
            if place in claimed:
                raise ValueError(f"{claimed[place]} and {method.name} both claim the place {place!r} of {spec!r}")
            claimed[place] = method.name
        if any(m.name == method.name for m in methods):
            raise ValueError(f"{method.name} stands twice in {spec!r}")
        methods.append(method)
    return [m for m in methods if m.name != "none"]


def source_files(method: Intervention) -> list[Path]:
    """The files that decide what a method does: those of its classes and what they import from beside them.

    Part of a trial's identity: a changed plugin is never served an old result.
    """
    kept_out = (object, ABC, Intervention)  # the interface is covered by zslx.identity.NUMERICS
    waiting = [Path(inspect.getfile(c)).resolve() for c in type(method).__mro__ if c not in kept_out]
    beside = {ROOT / "interventions", *(path.parent for path in waiting)} - {ROOT / "zslx"}
    files: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [i for i in _imports(path) if any(i.is_relative_to(folder) for folder in beside)]
    return sorted(files)


def _imports(path: Path) -> Iterator[Path]:
    """Files that a file may import from the root of the project or from its own folder."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [base, *(f"{base}.{a.name}" if base else a.name for a in node.names)]
        for name in names:
            for start in (ROOT, path.parent):
                candidate = start.joinpath(*name.split(".")).with_suffix(".py") if name else start
                if candidate.is_file():
                    yield candidate.resolve()
