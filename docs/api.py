"""Writes docs/api.md from the docstrings of zslx's public names.

    python docs/api.py

tests/unit/test_api.py checks that the page is up to date.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import zslx

PAGE = Path(__file__).parent / "api.md"


def page() -> str:
    parts = ["# The public names of zslx", "", "Made by `python docs/api.py` from the docstrings.", ""]
    for name in zslx.__all__:
        value = getattr(zslx, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            parts += [
                f"## {name}",
                "",
                "```python",
                f"{name}{signature(value)}",
                "```",
                "",
                f"From `{zslx.HOMES[name]}`.",
                "",
            ]
            parts += ["```text", inspect.getdoc(value) or "", "```", ""]
        else:
            parts += [f"## {name}", "", f"`{name} = {value}`, from `{zslx.HOMES[name]}`.", ""]
    return "\n".join(parts)


def signature(value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except ValueError:
        return ""
    return text if " at 0x" not in text and "<factory>" not in text else "(...)"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
