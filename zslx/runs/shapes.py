"""Shapes of the JSON files that zslx writes and reads again: which keys they hold, and values of what type.

A shape is a type (or a union of types), a list with the shape of its items, or a dictionary with the shapes of its
keys. `key?` may be absent; `*` stands for each key that is there. Other keys are not looked at, so that files of later
and earlier versions stay readable. Checked once where a file is read: whoever uses it then need not ask what it holds.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, get_args

Shape = type | UnionType | Sequence[Any] | Mapping[str, Any]
NUMBER = int | float
WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
WORDS |= {bool: "true or false", type(None): "null"}

CONFIG: Shape = {
    "intervention?": str,
    "settings?": {"*": dict},
    "reference?": str,
    "model": dict,
    "data": {"vocab_size": int},
    "optim": dict,
    "train": {"steps": int},
    "instruments": dict,
    "run?": dict,
}
CHECKPOINT: Shape = {"step": int, "files": {"tensors.safetensors": str, "state.json": str}}
MANIFEST: Shape = {
    "status": str,
    "error?": str,
    "identity?": str,
    "ingredients?": {"corpus?": str, "config?": {"reference?": str}},
    "versions?": dict,
    "hardware?": dict,
    "earlier?": [{"versions?": dict, "hardware?": dict}],
    "totals?": {"steps?": int, "tokens?": int, "seconds?": NUMBER | None, "train_seconds?": NUMBER | None}
    | {"reference_seconds?": NUMBER | None, "median_step_seconds?": NUMBER | None},
    "parameters?": {"non_embedding": int, "embedding": int, "total": int},
    "records?": dict,
}


def check(path: object, value: Any, shape: Shape, key: str = "") -> None:
    """ValueError, one line that names the file and the key, where `value` has not the shape."""
    if isinstance(shape, Mapping):
        _check_type(path, value, dict, key)
        for name, inner in shape.items():
            for own in value if name == "*" else [name.removesuffix("?")]:
                place = f"{key}.{own}" if key else own
                if own in value:
                    check(path, value[own], inner, place)
                elif own == name:
                    raise ValueError(f"{path}: {place} is missing")
    elif isinstance(shape, Sequence):
        _check_type(path, value, list, key)
        for i, item in enumerate(value):
            check(path, item, shape[0], f"{key}[{i}]")
    else:
        _check_type(path, value, shape, key)


def _check_type(path: object, value: Any, wanted: type | UnionType, key: str) -> None:
    allowed = get_args(wanted) or (wanted,)
    if type(value) not in allowed:
        words = " or ".join(WORDS[kind] for kind in allowed)
        raise ValueError(f"{path}: {key or 'the file'} must be {words}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value of unknown size in a message."""
    return WORDS[type(value)] if isinstance(value, (dict, list)) else repr(value)[:60]
