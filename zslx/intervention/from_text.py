"""Imports interventions from the text of their files, never from Python's cache of compiled modules.

A trial's identity hashes that text. Python takes the compiled copy in `__pycache__` for as long as the file has the
size and, in whole seconds, the time of change that it had: an edit of the same length within a second, or one that
keeps the time, would run the old text under the identity of the new one. So plugins, what they import from their own
folder or package, and zslx's own interventions are compiled anew by each process (all of zslx's own in some 30 ms).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

PLUGINS = "zslx_plugins"  # the package of the modules of plugin folders


class TextLoader(SourceFileLoader):
    """Loads a module from its text."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class TextFinder(MetaPathFinder):
    """Finds the modules of `packages` where Python does, and has a TextLoader load them."""

    def __init__(self) -> None:
        self.packages = {PLUGINS}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = TextLoader(spec.loader.name, spec.loader.path)
        return spec


_finder = TextFinder()
sys.meta_path.insert(0, _finder)


def from_text(package: str) -> None:
    """Import the modules of a package from their text, as far as they are not imported yet."""
    _finder.packages.add(package)


def import_file(path: Path) -> ModuleType:
    """The module of a plugin file.

    A package for each folder: files of one name do not meet, and `from .sibling import x` works.
    """
    package = f"{PLUGINS}.folder_{hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:8]}"
    for name, places in ((PLUGINS, []), (package, [str(path.parent)])):
        sys.modules.setdefault(name, ModuleType(name)).__path__ = places
    label = f"{package}.{path.stem}"
    loader = TextLoader(label, str(path))
    spec = importlib.util.spec_from_file_location(label, path, loader=loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up by name
    loader.exec_module(module)
    return module
