"""Versions of installed packages. Every run records them: each is looked for on the disk once."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
