"""A prepared text, opened: memory-mapped token streams, and the check that they are those that were written."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from zslx.text import tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Token streams by domain: `train[d]` and `heldout[d]` are one-dimensional, documents ended by `end_of_text`.

    about: what the manifest says of each domain; data_set: of the data set, where it is one.
    """

    folder: Path
    domains: tuple[str, ...]
    hash: str
    vocab_size: int
    train: tuple[NDArray[np.unsignedinteger], ...]
    heldout: tuple[NDArray[np.unsignedinteger], ...]
    token_counts: NDArray[np.int64]  # (V,) occurrences in the training text
    end_of_text: int = 0
    about: Sequence[Mapping[str, Any]] = ()
    data_set: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizer.opened(self.folder / "tokenizer.json")


class DamagedCache(ValueError):
    """A cache folder that is not what its manifest says."""


def load(folder: Path) -> Corpus:
    """The corpus in a finished cache folder; FileNotFoundError if there is none, DamagedCache if it is not whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.pop("check") != sha256(manifest):
            raise DamagedCache(f"{folder}/manifest.json was altered")
        for name, expected in manifest["files"].items():
            if (actual := fingerprint(folder / name)) != expected:
                raise DamagedCache(f"{folder / name} was altered: {actual}, expected {expected}")
    except FileNotFoundError as error:
        if (folder / "manifest.json").exists():
            raise DamagedCache(f"{error.filename} is missing") from error
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCache(f"{folder}/manifest.json is not a manifest: {error!r}") from error
    streams = {
        part: tuple(np.memmap(folder / d[part]["file"], dtype=manifest["dtype"], mode="r") for d in manifest["domains"])
        for part in ("train", "heldout")
    }
    return Corpus(
        folder=folder,
        domains=tuple(d["name"] for d in manifest["domains"]),
        hash=manifest["hash"],
        vocab_size=manifest["vocab_size"],
        token_counts=np.array(manifest["token_counts"], dtype=np.int64),
        end_of_text=manifest.get("end_of_text", 0),
        about=manifest["domains"],
        data_set=manifest.get("data_set", {}),
        **streams,
    )


def whole(folder: Path) -> Corpus | None:
    """The corpus in a cache folder, where there is a whole one."""
    try:
        return load(folder)
    except (FileNotFoundError, DamagedCache):
        return None


def fingerprint(file: Path) -> list[int]:
    """[bytes, checksum] where the checksum covers at most 256 evenly spaced blocks of 256 KiB."""
    stat = file.stat()
    return [stat.st_size, _checksum(file, stat.st_size, (stat.st_mtime_ns, stat.st_ino))]


@cache
def _checksum(file: Path, size: int, stamp: tuple[int, int]) -> int:
    """Read once by a process, while the file stays the same: every run of a pack opens the corpus."""
    block, blocks, checksum = 2**18, 256, 0
    with file.open("rb") as stream:
        for i in range(min(blocks, -(-size // block))):
            if size > block * blocks:
                stream.seek(i * (size - block) // (blocks - 1))
            checksum = zlib.crc32(stream.read(block), checksum)
    return checksum


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
