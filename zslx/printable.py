"""Text of unknown origin, made safe to print: names, errors and paths may hold escape sequences."""

from __future__ import annotations

import unicodedata


def printable(text: str, width: int = 0) -> str:
    """`text` without what moves the cursor or changes colours: control characters escaped, cut to `width` if given."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)
    return shown if not width or len(shown) <= width else shown[: width - 1] + "…"


def one_line(text: str) -> str:
    """A message on one printable line, its own lines joined by `; `."""
    return printable("; ".join(part.strip() for part in text.splitlines() if part.strip()))
