"""Interventions by name: what is known of them, how a spec is read, and how its classes are loaded.

A spec is names joined by `+`, each possibly `placebo:name`: `pcgrad`, `pcgrad+cosine`, `placebo:pcgrad`. discovery.py
says where names are found; one name in two places is an error, and only a plugin that is asked for by name is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import sys
from abc import ABC
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from zslx.config.fields import convert, unknown
from zslx.config.groups import GROUPS
from zslx.config.run_config import PLAIN, Config
from zslx.config.spec import BASELINE, Spec
from zslx.intervention.base import Intervention
from zslx.intervention.class_text import literals
from zslx.intervention.discovery import UNKNOWN, Source, discover, settings_of
from zslx.intervention.from_text import from_text, import_file
from zslx.intervention.hooks import claims, examine_class
from zslx.intervention.placebo import placebo_of
from zslx.intervention.raised import told
from zslx.places import ROOT, ours

# Names that mean something else where an intervention's would stand, and what.
RESERVED = {
    **dict.fromkeys((*GROUPS, *PLAIN, "settings"), "a key of the configuration"),
    "baseline": "what reports call the run without an intervention",
}
from_text("interventions")


def describe(name: str, sources: list[Source]) -> dict[str, Any]:
    """Metadata of one name, as plain JSON values: `Intervention.card` of our own classes; of other people's what
    their source text says, for listing a plugin must not run it."""
    source = sources[0]
    if (source.cls or (source.module or "").startswith("interventions.")) and not source.absent:
        card = dict(load_class(name, sources).describe())
    else:
        node, values = source.class_node, literals(source.class_node)
        unseen = f"Defined by {source.where}; what it does is seen when it is run."
        doc = unseen if node is UNKNOWN else ast.get_docstring(node) or ""
        card = {key: values.get(key, "") for key in ("source", "cost")}
        card |= {"name": name, "family": values.get("family") or "plugin", "description": doc}
        card |= {"settings": settings_of(node), "placebo": values.get("placebo")}
    card["status"] = _status(name, sources)
    card["summary"] = card["description"].strip().partition("\n")[0]
    return card


def _status(name: str, sources: list[Source]) -> str:
    """What is known of a name before import: `available`, `available as ...` or `absent: <reason>`."""
    source = sources[0]
    if len(sources) > 1:
        return f"absent: defined twice: {' and '.join(s.where for s in sources)}"
    if name in RESERVED:
        return f"absent: {source.where} gives it a name that is {RESERVED[name]}: allowed is any other"
    return f"absent: {source.absent}" if source.absent else str(literals(source.class_node).get("status", "available"))


def resolve(spec: str) -> list[str]:
    """The names in a spec, each known; ValueError with the closest names otherwise. Imports no plugin."""
    found, names = discover(), Spec.parse(spec).names
    for name in names:
        _place(name, found)
    return names


def _place(name: str, found: Mapping[str, list[Source]]) -> Source:
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown intervention {name!r}; {hint}There are: {', '.join(found)}")
    status = _status(name, found[name])
    if status.startswith(("absent", "available as")):
        raise ValueError(f"intervention {name!r} is {status}")
    return found[name][0]


def load_class(name: str, sources: list[Source] | None = None) -> type[Intervention]:
    """The class of one name, whether it can be run (`sources` not given) or only described."""
    source = sources[0] if sources else _place(name, discover())
    if source.cls:
        return source.cls
    try:
        loaded = _import(source)
    except (Exception, SystemExit) as error:
        advice = ""
        if isinstance(error, ImportError) and (error.name or "").startswith("zslx"):
            advice = "; plugins take what they need from zslx itself, such as `from zslx import Intervention, setting`"
        what = told(error, lambda frame: frame.f_code.co_filename == str(source.path))
        raise ValueError(f"intervention {name!r} ({source.where}) fails on import: {what}{advice}") from error
    for value in vars(loaded).values() if isinstance(loaded, ModuleType) else [loaded]:
        if isinstance(value, type) and issubclass(value, Intervention) and vars(value).get("name") == name:
            return value
    raise ValueError(f"{source.where} defines no subclass of zslx.Intervention with name = {name!r}")


def _import(source: Source) -> Any:
    """The module of a source, or what its entry point names."""
    if source.point:
        from_text(source.point.module.partition(".")[0])
        return source.point.load()
    if source.module:
        if source.module.startswith("interventions."):
            ours("interventions")
        return importlib.import_module(source.module)
    assert source.path
    return import_file(source.path)


def load_intervention(name: str, **settings: Any) -> Intervention:
    """One intervention, ready to use; `placebo:NAME` gives the placebo of NAME with the same settings."""
    part, *more = Spec.parse(name).parts
    if more:
        raise ValueError(f"{name!r} names several interventions: one is wanted here")
    plain = part.name
    cls = load_class(plain)
    where = discover()[plain][0].where
    if part.placebo:
        cls = placebo_of(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in settings:
        if key not in fields:
            known = [f"{plain}.{f}" for f in fields]
            raise ValueError(
                unknown(f"{plain}.{key}", known) if known else f"{plain} has no settings, so {plain}.{key} is none"
            )
    examine_class(cls)
    values = {key: convert(f"{plain}.{key}", value, fields[key]) for key, value in settings.items()}
    try:
        return cls(**values)
    except ValueError:  # a setting is refused
        raise
    except (Exception, SystemExit) as error:
        what = told(error, lambda frame: frame.f_globals.get("__name__") == cls.__module__)
        raise ValueError(f"intervention {name!r} ({where}) cannot be made: {what}") from error


def load_spec(spec: str, settings: Mapping[str, Mapping[str, Any]]) -> list[Intervention]:
    """Every intervention of a spec (none of them for `none`), no two claiming the same exclusive place."""
    methods: list[Intervention] = []
    claimed: dict[str, str] = {}
    for part in Spec.parse(spec).parts:
        method = load_intervention(str(part), **settings.get(part.name, {}))
        for place in sorted(claims(type(method))):
            if place in claimed:
                raise ValueError(f"{claimed[place]} and {method.name} both claim the place {place!r} of {spec!r}")
            claimed[place] = method.name
        if any(m.name == method.name for m in methods):
            raise ValueError(f"{method.name} stands twice in {spec!r}")
        methods.append(method)
    return [m for m in methods if m.name != BASELINE]


def reference_of(config: Config) -> Config | None:
    """The configuration of a run that can serve as this one's reference: one of the same method with another seed,
    where its actions are replayed; the baseline for its losses. None where no reference is needed."""
    needs = frozenset().union(*(m.needs for m in load_spec(config.intervention, config.settings)))
    if "reference_actions" in needs:
        plain, train = str(Spec.parse(config.intervention).plain), config.train
        seeded = dataclasses.replace(train, seed=train.seed + 1)
        return dataclasses.replace(config, intervention=plain, train=seeded)
    if "reference_losses" in needs:
        return dataclasses.replace(config, intervention=BASELINE, settings={})
    return None


def source_files(method: Intervention) -> list[Path]:
    """The files that decide what a method does: those of its classes and what they import from beside them, that is
    from `interventions`, from a plugin's own folder or from its package.

    Part of a trial's identity: a changed plugin is never served an old result.
    """
    classes = [c for c in type(method).__mro__ if c not in (object, ABC)]
    # What zslx gives them (base classes, placebos) is covered by zslx.runs.identity.NUMERICS.
    theirs = [c for c in classes if c.__module__.partition(".")[0] != "zslx"]
    waiting = [file for file in map(_file, theirs) if file]
    beside = {ROOT / "interventions", *map(_package, waiting)} - {ROOT / "zslx"}
    files: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [i for i in _imports(path) if any(i.is_relative_to(folder) for folder in beside)]
    return sorted(files)


SOURCE_TEXT = "source_text"


def ready_to_send(cls: type[Intervention]) -> type[Intervention]:
    """A class that no file defines, with its text attached, so that it is the same intervention in another process."""
    for part in session_classes(cls):
        if SOURCE_TEXT not in vars(part):
            setattr(part, SOURCE_TEXT, class_source(part))
    return cls


def session_classes(method: type[Intervention]) -> list[type]:
    """A class and its bases as far as no file defines them: those of a notebook cell or a prompt."""
    return [c for c in method.__mro__ if c not in (object, ABC) and _file(c) is None]


def class_source(cls: type) -> str:
    """The text of a class that no file defines: its functions as written (else as compiled) and its other attributes.

    What else the cell defines and the class uses is not covered. A class that came from another process has the text
    that it had there under `source_text`.
    """
    if (text := vars(cls).get(SOURCE_TEXT)) is not None:
        return str(text)
    parts = []
    for name, value in sorted(vars(cls).items()):
        if inspect.isfunction(value):
            try:
                parts.append(inspect.getsource(value))
            except OSError:
                parts.append(f"{name} {value.__code__.co_code.hex()} {value.__code__.co_consts!r}")
        elif not name.startswith("__") or name == "__annotations__":
            parts.append(f"{name} = {value!r}")
    return "\n".join(parts)


def _file(cls: type) -> Path | None:
    """The file that defines a class; None for one of a notebook, a prompt or the script that is being run."""
    if cls.__module__ == "__main__" or SOURCE_TEXT in vars(cls):
        return None
    try:
        path = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):
        return None
    return path if path.is_file() else None


def _package(path: Path) -> Path:
    """The folder of the outermost package that a file belongs to; its own folder where that is none."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _imports(path: Path) -> Iterator[Path]:
    """Files that a file may import: modules, and the `__init__.py` of every package on the way to one."""
    roots = _roots(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            starts, names = roots, [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            starts = [path.parents[min(node.level, len(path.parents)) - 1]] if node.level else roots
            base = [node.module] if node.module else []
            names = [".".join(base), *(".".join([*base, a.name]) for a in node.names)]
        else:
            continue
        for name in names:
            for start in starts:
                yield from _modules(start, name.split(".") if name else [])


def _roots(path: Path) -> list[Path]:
    """Where an absolute import may start: Python's path, and beside the file's own package."""
    return list(dict.fromkeys([ROOT, _package(path).parent, *(Path(p or ".").resolve() for p in sys.path)]))


def _modules(start: Path, parts: list[str]) -> Iterator[Path]:
    """The files that importing `parts` from the folder `start` runs."""
    for i in range(len(parts) + 1):
        folder = start.joinpath(*parts[:i])
        candidates = [folder / "__init__.py"] if i or (start / "__init__.py").is_file() else []
        if i:
            candidates.append(folder.with_name(f"{folder.name}.py"))
        yield from (c.resolve() for c in candidates if c.is_file())
