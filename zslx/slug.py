"""A name of any origin as one part of a path."""

from __future__ import annotations

import re


def slug(name: str, width: int = 60) -> str:
    """`name` reduced to ASCII letters, digits, `_`, `.` and `-`, at most `width` of them; never a hidden file."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:width].strip("-.") or "unnamed"
