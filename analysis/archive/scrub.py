"""Texts without the places of the machine that they come from: of a path, its last part is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# The folders of an absolute path. Paths with spaces are found only where they are known.
FOLDERS = re.compile(r"(?<![\w.~/)\]])~?/(?:[^\s/'\",;:=()]+/)*(?=[^\s/])")


def without_places(value: Any, known: Iterable[Path | str] = (), names: Iterable[str] = ()) -> Any:
    """JSON values with each absolute path in their texts reduced to its name; a `known` one to nothing and what lies
    in it to its place there. Texts that are one of `names` stay as they are."""
    kept = set(names)
    places = sorted({str(place).rstrip("/") for place in known} - {"", "."}, key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(inner) for inner in value]
        return FOLDERS.sub("", _inside(value, places)) if isinstance(value, str) and value not in kept else value

    return clean(value)


def _inside(text: str, places: list[str]) -> str:
    for place in places:
        text = text.replace(f"{place}/", "")
        text = re.sub(rf"{re.escape(place)}(?![\w.-])", lambda found: Path(found[0]).name, text)
    return text
