"""Tokenises a data set in chunks, on all cores, so that a killed process goes on where it was; then one file a domain.

    WORK/  tokenizer.json   log.jsonl   000000.tokens  000000.documents   000001.tokens ...   00-web.train.bin ...

First pass: documents are read in their order and tokenised. What CHUNK bytes of text give is a chunk: its tokens, and
for each document its domain, rank (heldout_split.py), tokens and bytes. When a chunk is on the disk, a line of the log
says so, with checksums and the state from which the reading goes on. A process that is killed, or that meets a full
disk, loses the chunk that it was at.

Second pass: the ranks decide what is held out, and so which tokens of a chunk go to which place of which file. Chunk
by chunk they are written there, and the chunk is removed. So both passes need the disk that the tokens take, and one
chunk more. One chunk is in memory at a time.

While the tokenizer's threads encode, this one reads what comes next and packs what came before. Cost beside the bare
tokenizer: `python -m benchmarks.data --data-set`.
"""

from __future__ import annotations

import array
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from zslx.slug import slug
from zslx.text import tokenizer
from zslx.text.data_set import Row, State
from zslx.text.heldout_split import RANKS, cutoff, rank

CHUNK = 32_000_000  # bytes of text
BATCH = 4_000_000  # characters that are encoded at once
DOMAINS = 1024  # at most
DOCUMENT = np.dtype([("domain", "<u2"), ("rank", "<u2"), ("tokens", "<u8"), ("bytes", "<u8")])
PARTS = ("train", "heldout")
LOG = "log.jsonl"

Rows: TypeAlias = Callable[[State | None], Iterator[tuple[list[Row], State]]]
Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Packed:
    """Some documents, tokenised: `documents` (n,) of type DOCUMENT, and their tokens end to end."""

    documents: NDArray[Any]
    tokens: Tokens
    skipped: int  # documents without text
    state: State  # from which the reading goes on

    def cut(self, tokens: int) -> Packed:
        """Without the documents after the one with which there are so many tokens."""
        ends = self.documents["tokens"].cumsum()
        keep = int(np.searchsorted(ends, tokens)) + 1
        if keep >= len(ends):
            return self
        return Packed(self.documents[:keep], self.tokens[: int(ends[keep - 1])], self.skipped, self.state)


class Chunks:
    """The chunks in `work`. Those of an earlier process are taken over, up to the first that is not whole."""

    def __init__(self, work: Path, bpe: Tokenizer, end: int, *, runs: bool, dtype: np.dtype[Any]):
        """`end` is the token that ends a document; `runs`: long runs are cut (tokenizer.py)."""
        self.work, self.bpe, self.end, self.runs, self.dtype = work, bpe, end, runs, dtype
        self.log = work / LOG
        self.lines = self._whole_lines()
        self.domains = {name: i for i, name in enumerate(n for line in self.lines for n in line["domains"])}

    # -------------------------------------------------------------------------------------------- first pass

    @property
    def finished(self) -> bool:
        return bool(self.lines) and self.lines[-1]["last"]

    def total(self, what: str) -> int:
        """`documents`, `tokens`, `bytes` of text or `skipped` documents of all chunks."""
        return sum(line[what] for line in self.lines)

    def tokenise(self, rows: Rows, max_tokens: int, progress: Callable[[int, int], None]) -> None:
        """Tokenise what is left, until there are `max_tokens` (0: all) or no more documents.

        `progress(tokens, bytes)` is told what there is so far.
        """
        if self.finished:
            return
        tokens, size = self.total("tokens"), self.total("bytes")
        chunk: list[Packed] = []
        for packed in self._packed(rows):
            if full := 0 < max_tokens <= tokens + len(packed.tokens):
                packed = packed.cut(max_tokens - tokens)
            chunk.append(packed)
            tokens, size = tokens + len(packed.tokens), size + int(packed.documents["bytes"].sum())
            progress(tokens, size)
            if full or sum(int(p.documents["bytes"].sum()) for p in chunk) >= CHUNK:
                self._write(chunk, last=full)
                chunk = []
            if full:
                return
        self._write(chunk, last=True)

    def _packed(self, rows: Rows) -> Iterator[Packed]:
        """Documents in their order, tokenised. One batch is encoded while another is read and a third is packed."""
        waiting: tuple[list[Row], State, Future[list[list[Encoding]]]] | None = None
        with ThreadPoolExecutor(1) as pool:
            for batch, state in _batches(rows(self.lines[-1]["state"] if self.lines else None)):
                before, waiting = waiting, (batch, state, pool.submit(self._encode, batch))
                if before:
                    yield self._pack(*before)
            if waiting:
                yield self._pack(*waiting)

    def _encode(self, batch: list[Row]) -> list[list[Encoding]]:
        """The encodings of each row's pieces; none of a row without text."""
        pieces = [list(tokenizer.pieces([row.text], self.runs)) if row.text else [] for row in batch]
        encodings = iter(tokenizer.encode_all(self.bpe, [piece for own in pieces for piece in own]))
        return [[next(encodings) for _ in own] for own in pieces]

    def _pack(self, batch: list[Row], state: State, encoded: Future[list[list[Encoding]]]) -> Packed:
        ids, documents = array.array("I"), []
        for row, encodings in zip(batch, encoded.result(), strict=True):
            if row.text is None:
                continue
            start, content = len(ids), row.text.encode()
            for encoding in encodings:
                ids.extend(encoding.ids)
            ids.append(self.end)
            documents.append((self._domain(row.domain), rank(content), len(ids) - start, len(content)))
        tokens = np.frombuffer(ids, dtype=np.uint32) if ids else np.empty(0, np.uint32)
        return Packed(
            np.array(documents, dtype=DOCUMENT), tokens.astype(self.dtype), len(batch) - len(documents), state
        )

    def _domain(self, name: str) -> int:
        if name not in self.domains and len(self.domains) == DOMAINS:
            some = ", ".join(map(repr, list(self.domains)[:3]))
            raise ValueError(f"data.domain_column has more than {DOMAINS} values, such as {some}")
        return self.domains.setdefault(name, len(self.domains))

    # ------------------------------------------------------------------------------------------------ the log

    def _files(self, chunk: int) -> tuple[Path, Path]:
        return self.work / f"{chunk:06d}.documents", self.work / f"{chunk:06d}.tokens"

    def _write(self, chunk: list[Packed], last: bool) -> None:
        documents = np.concatenate([np.empty(0, DOCUMENT), *(packed.documents for packed in chunk)])
        tokens = np.concatenate([np.empty(0, self.dtype), *(packed.tokens for packed in chunk)])
        checks = [_written(*pair) for pair in zip(self._files(len(self.lines)), (documents, tokens), strict=True)]
        known = sum(len(line["domains"]) for line in self.lines)
        state = chunk[-1].state if chunk else None
        line = {
            "documents": len(documents),
            "tokens": len(tokens),
            "bytes": int(documents["bytes"].sum()),
            "skipped": sum(packed.skipped for packed in chunk),
            "domains": list(self.domains)[known:],
            "checks": checks,
            "state": state,
            "last": last,
        }
        text = json.dumps(line)
        with self.log.open("a") as log:
            log.write(f"{zlib.crc32(text.encode()):08x} {text}\n")
            log.flush()
            os.fsync(log.fileno())
        self.lines.append(line)

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines of the log whose chunks are whole; the log is cut after them."""
        found, size = [], 0
        content = self.log.read_bytes() if self.log.exists() else b""
        lines = [_line(line) for line in content.splitlines(keepends=True)]
        ended = bool(lines) and lines[-1] is not None and lines[-1]["last"]
        for i, (line, raw) in enumerate(zip(lines, content.splitlines(keepends=True), strict=True)):
            if line is None or not self._whole(i, line, ended):
                break
            found.append(line)
            size += len(raw)
        if size < len(content):
            os.truncate(self.log, size)
        return found

    def _whole(self, chunk: int, line: dict[str, Any], ended: bool) -> bool:
        """Whether the files are what the line says. Tokens that the second pass has moved are gone."""
        documents, tokens = self._files(chunk)
        moved = ended and not tokens.exists()
        return _check(documents) == line["checks"][0] and (moved or _check(tokens) == line["checks"][1])

    # ------------------------------------------------------------------------------------------- second pass

    def assemble(self, progress: Callable[[float], None]) -> list[dict[str, Any]]:
        """Move the tokens of all chunks to one file for each domain and part; what the manifest says of the domains."""
        names = list(self.domains)
        cuts = np.array([self._cutoff(name, sizes) for name, sizes in zip(names, self._sizes(), strict=True)])
        order = np.argsort(np.argsort(names)) if names else np.empty(0)
        about: list[dict[str, Any]] = [
            {"name": name, **{part: self._about(int(i), name, part) for part in PARTS}}
            for name, i in zip(names, order, strict=True)
        ]
        for chunk in range(len(self.lines)):
            progress(chunk / len(self.lines))
            documents, source = np.fromfile(self._files(chunk)[0], DOCUMENT), self._files(chunk)[1]
            held = (documents["rank"] < cuts[documents["domain"]]).astype(np.int64)
            side, starts = documents["domain"] * 2 + held, np.r_[0, documents["tokens"].cumsum()].astype(np.int64)
            tokens = np.fromfile(source, self.dtype) if source.exists() else None
            for key in np.unique(side).tolist():
                own, mine = about[key // 2][PARTS[key % 2]], np.flatnonzero(side == key)
                if tokens is not None:
                    parts = [tokens[starts[d] : starts[d + 1]] for d in mine.tolist()]
                    _put(self.work / own["file"], own["tokens"] * self.dtype.itemsize, np.concatenate(parts))
                own["documents"] += len(mine)
                own["tokens"] += int(documents["tokens"][mine].sum())
                own["bytes"] += int(documents["bytes"][mine].sum())
            source.unlink(missing_ok=True)
        for own in (domain[part] for domain in about for part in PARTS):
            os.truncate(self.work / own["file"], own["tokens"] * self.dtype.itemsize)
        return sorted(about, key=lambda domain: str(domain["name"]))

    def _sizes(self) -> NDArray[np.int64]:
        """(D, RANKS) bytes of text."""
        sizes = np.zeros(len(self.domains) * RANKS)
        for chunk in range(len(self.lines)):
            documents = np.fromfile(self._files(chunk)[0], DOCUMENT)
            keys = documents["domain"].astype(np.int64) * RANKS + documents["rank"]
            sizes += np.bincount(keys, weights=documents["bytes"], minlength=len(sizes))
        return sizes.astype(np.int64).reshape(-1, RANKS)

    @staticmethod
    def _cutoff(name: str, sizes: NDArray[np.int64]) -> int:
        try:
            return cutoff(sizes)
        except ValueError as error:
            raise ValueError(f"data.path: the domain {name!r}: {error}") from error

    @staticmethod
    def _about(i: int, name: str, part: str) -> dict[str, Any]:
        return {"file": f"{i:02d}-{slug(name, 40)}.{part}.bin", "tokens": 0, "bytes": 0, "documents": 0}


def leave(work: Path) -> None:
    """Remove what the passes needed, and no more."""
    for file in (work / LOG, *work.glob("*.documents"), *work.glob("*.tokens")):
        file.unlink(missing_ok=True)


def _batches(tables: Iterator[tuple[list[Row], State]]) -> Iterator[tuple[list[Row], State]]:
    """Rows in parts of about BATCH characters, each with the state after it."""
    batch: list[Row] = []
    size, state = 0, None
    for rows, state in tables:
        batch += rows
        size += sum(len(row.text or "") for row in rows)
        if size >= BATCH:
            yield batch, state
            batch, size = [], 0
    if batch and state is not None:
        yield batch, state


def _written(file: Path, values: NDArray[Any]) -> list[int]:
    """Write and sync; [bytes, checksum]."""
    content = values.tobytes()
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return [len(content), zlib.crc32(content)]


def _check(file: Path) -> list[int] | None:
    if not file.exists():
        return None
    content = file.read_bytes()
    return [len(content), zlib.crc32(content)]


def _put(file: Path, place: int, values: NDArray[Any]) -> None:
    """Write the values at a place of the file, and sync."""
    with _opened(file) as stream:
        stream.seek(place)
        stream.write(values.tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def _opened(file: Path) -> BinaryIO:
    return os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), "r+b")


def _line(raw: bytes) -> dict[str, Any] | None:
    """A line of the log; None where it is not whole."""
    check, _, text = raw.partition(b" ")
    if not raw.endswith(b"\n") or check != b"%08x" % zlib.crc32(text[:-1]):
        return None
    line: dict[str, Any] = json.loads(text)
    return line
