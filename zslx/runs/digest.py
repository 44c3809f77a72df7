"""The hash that makes a name of values, and which settings of a run it covers. Torch-free: whoever has the ingredients
of an identity can check it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Settings that came later, by group: a run that does not use them has the identity that it always had.
LATER = {
    "train": ("micro_batch", "checkpointing", "loss_chunk", "deterministic"),
    "model": ("hf", "hf_config", "pretrained"),
}
# Settings that say where a thing is: the hashes of text, tokenizer and device count.
PLACES = {"train": ("device",), "data": ("path", "tokenizer", "text_column", "domain_column", "max_tokens")}


def digest(values: Any) -> str:
    """16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def hashed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an identity hashes of a configuration given as JSON values, which may lack settings that came later."""
    values = {key: dict(v) if isinstance(v, Mapping) else v for key, v in config.items()}
    for key in ("instruments", "run"):
        values.pop(key, None)
    for group, keys in LATER.items():
        for key in keys:
            if not values[group].get(key):
                values[group].pop(key, None)
    if values["model"].get("hf_config"):
        values["model"].pop("hf", None)  # what lies in the folder counts, not where it is
    for group, keys in PLACES.items():
        for key in keys:
            values[group].pop(key, None)
    return values
