"""Text that tests make, and what is prepared of it."""

from __future__ import annotations

import random
from pathlib import Path

from zslx.text import corpus, token_cache

WORDS = [
    "the",
    "loss",
    "of",
    "a",
    "token",
    "is",
    "minus",
    "the",
    "log",
    "of",
    "its",
    "share",
    "and",
    "gradients",
    "oppose",
]


def prose(seed: int, words: int = 400) -> str:
    draw = random.Random(seed)
    return "".join(
        draw.choice(WORDS) + draw.choice([" ", " ", " ", ".\n", f" {draw.randrange(99)}"]) for _ in range(words)
    )


def verse(seed: int, lines: int = 4) -> str:
    """Lines of eight words, some of them not ASCII."""
    draw, words = random.Random(seed), [*WORDS, "é", "∂"]
    return "\n".join(" ".join(f"{draw.choice(words)}{draw.randrange(99)}" for _ in range(8)) for _ in range(lines))


def prepare(text: Path, **settings: object) -> corpus.Corpus:
    return token_cache.prepare(str(text), **({"vocab_size": 300, "cache": text.parent / "cache"} | settings))  # type: ignore[arg-type]


def folders(text: Path) -> list[str]:
    return sorted(f.name for f in (text.parent / "cache").iterdir() if f.is_dir())
