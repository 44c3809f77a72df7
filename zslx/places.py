"""Where zslx's own packages and the user's plugins lie, and the check that none of these stands in for ours."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import zslx

ROOT = Path(zslx.__file__).parent.parent
PLUGIN_GROUP = "zslx.interventions"  # entry points of installed packages


def plugin_folders() -> list[Path]:
    """The folders of ZSLX_PLUGINS, by default `plugins` in the working directory."""
    given = os.environ.get("ZSLX_PLUGINS")
    return [Path(p).resolve() for p in given.split(os.pathsep) if p] if given else [Path("plugins").resolve()]


def ours(package: str) -> str:
    """`package` if importing it gives the folder beside `zslx`; ValueError, with both paths, if another hides it."""
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    if not any(Path(p).resolve() == (ROOT / package).resolve() for p in locations[:1]):
        found = locations[0] if locations else "nothing"
        raise ValueError(
            f"{found} hides zslx's own package {package!r} at {ROOT / package}: rename it, or work elsewhere"
        )
    return package
