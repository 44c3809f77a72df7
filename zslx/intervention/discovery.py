"""Where interventions are defined, read from source text alone: discovery imports no plugin.

Places, in this order: the `interventions` folder beside `zslx`; the folders in ZSLX_PLUGINS (default: `plugins`
in the working directory); entry points `zslx.interventions` of installed packages; classes defined in this process
(`define`). An entry point bears the name of
its intervention; of a class that its module only re-exports nothing more is known before import.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

from zslx.intervention.base import Intervention
from zslx.intervention.class_text import UNREADABLE, class_nodes, literal, literals
from zslx.places import PLUGIN_GROUP, ROOT, plugin_folders

UNKNOWN = ast.ClassDef(name="", bases=[], keywords=[], body=[], decorator_list=[])


@dataclass(frozen=True)
class Source:
    """Where one name is defined: a file and, for a package's module, its import path, or an entry point and the file
    of its module. `class_node` is the text of the class, where that is seen; `absent` says why it cannot be used."""

    name: str
    path: Path | None
    module: str | None = None
    class_node: ast.ClassDef = UNKNOWN
    point: EntryPoint | None = None
    absent: str = ""
    cls: type[Intervention] | None = None

    @property
    def where(self) -> str:
        """For messages: the file, else the entry point, else the class itself."""
        if self.cls:
            return f"the class {self.cls.__qualname__} of this session"
        return str(self.path) if self.path else f"entry point {self.name} = {self.point and self.point.value}"


_defined: dict[str, Source] = {}


def define(cls: type[Intervention]) -> None:
    """Make a class known by its name in this process: one of a notebook cell, say, that no file defines.

    Defining it again, from an edited cell, replaces it. ValueError where a file or package defines the name.
    """
    known = [s for s in discover().get(cls.name, []) if s.cls is None]
    if known:
        raise ValueError(f"intervention {cls.name!r} exists: {known[0].where}; choose another name")
    _defined[cls.name] = Source(cls.name, None, cls=cls)


def defined() -> list[type[Intervention]]:
    """The classes that `define` made known."""
    return [source.cls for source in _defined.values() if source.cls]


def discover() -> dict[str, list[Source]]:
    """Every name that can be asked for, with the places that define it (more than one is a clash)."""
    found: dict[str, list[Source]] = {}
    for source in [*_from_package(), *_from_folders(), *_from_entry_points(), *_defined.values()]:
        found.setdefault(source.name, []).append(source)
    return dict(sorted(found.items()))


def _from_package() -> Iterator[Source]:
    for path in sorted((ROOT / "interventions").glob("*/*.py")):
        yield from _classes(path, ".".join(path.relative_to(ROOT).with_suffix("").parts))


def _from_folders() -> Iterator[Source]:
    folders = [folder for folder in plugin_folders() if folder != ROOT / "interventions" and folder.is_dir()]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    for path in dict.fromkeys(path.resolve() for path in paths):  # of folders in one another: each file once
        if not path.name.startswith("test_"):
            yield from _classes(path, None)


def _from_entry_points() -> Iterator[Source]:
    for point in _entry_points(tuple(sys.path)):
        try:
            spec = _find(point.module)
        except (AttributeError, ImportError, ValueError):  # no module's name
            spec = None
        if not spec:
            missing = f"entry point {point.name} = {point.value}: there is no such module"
            yield Source(point.name, None, point=point, absent=missing)
            continue
        path = Path(spec.origin) if spec.has_location and spec.origin else None
        yield _from_entry_point(point, path)


def _from_entry_point(point: EntryPoint, path: Path | None) -> Source:
    """What the text of an entry point's module says of it."""
    node, absent = UNKNOWN, ""
    try:
        nodes = class_nodes(path) if path and path.suffix == ".py" else []
        node = next((n for n in nodes if n.name == point.attr), UNKNOWN)
        if (name := literals(node).get("name", point.name)) != point.name:
            absent = f"entry point {point.name} = {point.value}: that class has name = {name!r}"
    except UNREADABLE as error:
        absent = f"{path} cannot be parsed: {error}"
    return Source(point.name, path, point.module, node, point, absent)


def _find(module: str) -> ModuleSpec | None:
    """Where a module lies. Imports nothing, unlike importlib.util.find_spec, which imports a submodule's packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in rest:
        folders = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", folders) if spec and folders else None
    return spec


@cache
def _entry_points(search_path: tuple[str, ...]) -> EntryPoints:
    return importlib.metadata.entry_points(group=PLUGIN_GROUP)


def _classes(path: Path, module: str | None) -> Iterator[Source]:
    """The classes of a file that set `name` to a text. A file that cannot be parsed has its own name and says why."""
    try:
        nodes = class_nodes(path)
    except UNREADABLE as error:
        yield Source(path.stem, path, module, absent=f"{path} cannot be parsed: {error}")
        return
    for node in nodes:
        if name := literals(node).get("name"):
            yield Source(str(name), path, module, node)


def settings_of(node: ast.ClassDef) -> list[dict[str, Any]]:
    """The settings that a class declares in its text, and those of the bases that zslx gives."""
    from zslx.intervention import controller, gradient_method

    rows = []
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        cls = getattr(gradient_method, name, None) or getattr(controller, name, None)
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
                    row[str(key)] = literal(value)
                except UNREADABLE:
                    row[str(key)] = ast.unparse(value)
            rows.append(row)
    return rows
