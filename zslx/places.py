"""Where zslx's own packages lie, and the check that nothing of the user's stands in for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import zslx

ROOT = Path(zslx.__file__).parent.parent


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
