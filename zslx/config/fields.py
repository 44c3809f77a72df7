"""One setting as a dataclass field: it carries its help text and its limits, and values are read and checked by it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with a help text; its value is one of `choices`, or a number from `low` to `high`, where given."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def unknown(key: str, allowed: list[str]) -> str:
    """The message for an unknown key. It proposes the closest allowed names, or else lists all of them."""
    close = difflib.get_close_matches(key, allowed, n=3, cutoff=0.5)
    return f"unknown key {key!r}; " + (
        f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(allowed)}"
    )


def convert(key: str, value: Any, f: dataclasses.Field[Any]) -> Any:
    """`value`, a string or a JSON value, as the type of the field. ValueError names the key and the value."""
    kind = f.type if isinstance(f.type, str) else f.type.__name__
    try:
        if kind == "bool":
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if kind == "int":
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(value) if not isinstance(value, str) or value.lstrip("+-").isdigit() else int(float(value))
        if kind == "float":
            if isinstance(value, bool) or not math.isfinite(float(value)):
                raise ValueError
            return float(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        what = {"bool": "true or false", "int": "a whole number", "float": "a finite number"}[kind]
        raise ValueError(f"{key}={value!r}: must be {what}") from None
    return str(value)


def check(label: str, value: Any, f: dataclasses.Field[Any]) -> None:
    """Raise ValueError naming the key, its value and what is allowed."""
    choices, low, high = (f.metadata.get(k) for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ValueError(f"{label}={value!r}: allowed are {', '.join(map(str, choices))}")
    if low is None and high is None:
        return
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or value != value
    if bad or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{label}={value!r}: must be a number {bounds}")
