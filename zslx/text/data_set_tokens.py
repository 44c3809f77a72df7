"""The tokens of a data set, written into the folder that becomes its cache (token_cache.py).

A kill or a full disk leaves a folder from which the same call goes on (token_chunks.py).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from zslx.progress import Progress
from zslx.text import tokenizer
from zslx.text.data_set import DataSet
from zslx.text.documents import Domain, document_of
from zslx.text.heldout_split import TRAINED, rank
from zslx.text.token_chunks import PARTS, Chunks

BLOCK = 2**24  # bytes of a token file read at once


@dataclass(frozen=True)
class Wanted:
    """What is taken of a data set, as the settings of `data` say."""

    text_column: str = "text"
    domain_column: str = ""
    max_tokens: int = 0


def write(
    work: Path, data: DataSet, wanted: Wanted, vocab_size: int, given: tuple[Tokenizer, int] | None, bar: Progress
) -> dict[str, Any]:
    """Token files and tokenizer.json in `work`; what the manifest says of them.

    `given`: a tokenizer and its end of text; None trains one of `vocab_size` entries.
    """
    if not (work / "tokenizer.json").exists():
        bar.at(0, "training the tokenizer" if given is None else "opening the tokenizer")
        made = given[0] if given else tokenizer.trained([_sample(data, wanted)], vocab_size)
        (work / "tokenizer.new").write_text(made.to_str(), encoding="utf-8")
        (work / "tokenizer.new").rename(work / "tokenizer.json")
    bpe, end = tokenizer.opened(work / "tokenizer.json"), given[1] if given else 0
    entries = tokenizer.entries(bpe)
    dtype = np.dtype("<u2" if entries <= 2**16 else "<u4")
    chunks = Chunks(work, bpe, end, runs=given is None, dtype=dtype)
    size = data.text_bytes(wanted.text_column)
    bar.say(announced(data.path, work, size, wanted.max_tokens, entries, dtype.itemsize, chunks.total("tokens")))

    def progress(tokens: int, done: int) -> None:
        shares = [tokens / wanted.max_tokens if wanted.max_tokens else 0.0, done / size if size else 0.0]
        bar.at(0.97 * min(1.0, max(shares)), "encoding", f", {count(tokens)} tokens")

    chunks.tokenise(
        lambda state: data.rows(wanted.text_column, wanted.domain_column, state), wanted.max_tokens, progress
    )
    if not chunks.domains:
        raise ValueError(f"data.path={data.path!r}: none of its {chunks.total('skipped')} documents has UTF-8 text")
    about = chunks.assemble(lambda share: bar.at(0.97 + 0.02 * share, "assembling"))
    if skipped := chunks.total("skipped"):
        bar.say(f"{skipped} documents of {data.path} were left out: empty or no UTF-8 text")
    bar.at(0.99, "checksums")
    digests, counts = [], np.zeros(entries, dtype=np.int64)
    for domain, part in itertools.product(about, PARTS):
        digest, own = _read(work / domain[part]["file"], dtype, entries)
        digests.append([domain["name"], part, digest])
        counts += own if part == "train" else 0
    identity = [digests, dtype.str, end, (work / "tokenizer.json").read_text(encoding="utf-8")]
    return {
        "hash": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "vocab_size": entries,
        "end_of_text": end,
        "dtype": dtype.str,
        "domains": about,
        "token_counts": counts.tolist(),
        "data_set": data.identity | {"skipped": chunks.total("skipped")},
    }


def _sample(data: DataSet, wanted: Wanted) -> Domain:
    """The first documents that are sure to be trained on, enough for the tokenizer."""
    documents, size = [], 0
    for rows, _ in data.rows(wanted.text_column, wanted.domain_column):
        for row in rows:
            if row.text and rank(row.text.encode()) >= TRAINED:
                documents.append(document_of("", row.text))
                size += documents[-1].size
        if size >= tokenizer.TRAINING_BYTES:
            break
    return Domain(name="", documents=tuple(documents))


def _read(file: Path, dtype: np.dtype[Any], entries: int) -> tuple[str, NDArray[np.int64]]:
    """(sha256, occurrences of each token) of a token file."""
    digest, counts = hashlib.sha256(), np.zeros(entries, dtype=np.int64)
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            counts += np.bincount(np.frombuffer(block, dtype), minlength=entries)
    return digest.hexdigest(), counts


def announced(path: str, work: Path, size: float | None, max_tokens: int, entries: int, width: int, done: int) -> str:
    """What will be made, and the disk that it needs, in one line. `size`: bytes of text, None where unknown."""
    free = shutil.disk_usage(work).free
    per_token = 3 if entries < 2**14 else 4  # bytes of English
    expected = [*([size / per_token] if size is not None else []), *([max_tokens] if max_tokens else [])]
    begun = f"{path}: going on after {count(done)} tokens; " if done else f"{path}: "
    where = f"in {work.parent}, where {gigabytes(free)} are free"
    if not expected:
        return f"{begun}its size is not known; a token takes {width} bytes {where} (data.max_tokens sets a limit)"
    tokens = min(expected)
    needed = tokens * width
    short = "; THAT IS TOO LITTLE: set data.max_tokens or ZSLX_CACHE" if needed - done * width > free else ""
    return f"{begun}about {count(tokens)} tokens, {gigabytes(needed)} {where}{short}"


def count(number: float) -> str:
    """`920 thousand`, `3.2 million`, `14 billion`."""
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f}"


def gigabytes(size: float) -> str:
    """`12 MB`, `3.4 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
