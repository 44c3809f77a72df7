"""What the tests of text share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.text.made_text import prose
from zslx.text import data_set, token_chunks


@pytest.fixture
def text(tmp_path: Path) -> Path:
    root = tmp_path / "text"
    for domain in ("b", "a"):
        for i in range(6):
            file = root / domain / f"{i}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(prose(hash_free(domain, i)))
    return root


def hash_free(domain: str, i: int) -> int:
    return 100 * ord(domain) + i


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few documents, so that there are some."""
    monkeypatch.setattr(token_chunks, "CHUNK", 25_000)
    monkeypatch.setattr(token_chunks, "BATCH", 6_000)
    monkeypatch.setattr(data_set, "ROWS", 20)
