"""What the runs of a pack have in common: the settings that decide the shapes of a pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zslx.config.run_config import Config

SHAPES = ("model", "data.batch_size", "data.seq_len", "data.vocab_size", "data.path", "data.tokenizer",
          "data.text_column", "data.domain_column", "data.max_tokens", "data.heldout_sequences", "train.dtype",
          "train.device", "train.threads", "train.compile")  # fmt: skip


def shape(config: Config) -> dict[str, Any]:
    """What the runs of a pack have in common, by key."""
    values = config.to_dict()
    return {
        key: values[group] if not name else values[group][name]
        for key in SHAPES
        for group, _, name in [key.partition(".")]
    }


def check_shapes(configs: Sequence[Config]) -> None:
    """ValueError, naming the key, where the runs cannot share a pass."""
    if other := next((config.model.hf for config in configs if config.model.hf), None):
        raise ValueError(f"a pack needs the native model: a run of model=hf:{other} trains by itself")
    first = shape(configs[0])
    for config in configs[1:]:
        for key, other in shape(config).items():
            if other != first[key]:
                raise ValueError(f"a pack needs runs of the same {key}, got {first[key]} and {other}")
