"""A cache of tokenised text: memory-mapped files that are prepared once and that many processes share.

    CACHE/text-KEY/  00-python.train.bin  00-python.heldout.bin  ...   uint16 or uint32, little-endian
                     tokenizer.json       manifest.json

KEY is a sha256 of the recipe, the version of `tokenizers`, the vocabulary's size and the sources: package versions
for the embedded corpus, the files' contents for a path (CACHE/path-… remembers the key of files that did not
change, so that they are not read at every start). One process prepares under a lock while the others wait. It
writes into a folder of its own, syncs, writes the manifest last, and renames the folder, so that a folder of that name
is always complete. Opening checks sizes and checksums (all of a file up to 64 MB, evenly spaced blocks of a larger
one). A damaged cache is made again.

`Corpus.hash` is the sha256 over every document of every domain and split, in order, and the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from zslx.locking import locked
from zslx.progress import Progress
from zslx.slug import slug
from zslx.text import builtin, documents, tokenizer
from zslx.text.documents import Document, Domain
from zslx.text.heldout_split import split

RECIPE = 1  # raise when the same sources would give other tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Token streams by domain: `train[d]` and `heldout[d]` are one-dimensional, documents ended by token 0."""

    folder: Path
    domains: tuple[str, ...]
    hash: str
    vocab_size: int
    train: tuple[NDArray[np.unsignedinteger], ...]
    heldout: tuple[NDArray[np.unsignedinteger], ...]
    token_counts: NDArray[np.int64]  # (V,) occurrences in the training text

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizer.opened(self.folder / "tokenizer.json")


class DamagedCache(ValueError):
    """A cache folder that is not what its manifest says."""


def prepare(path: str = "", vocab_size: int = 2048, cache: str | Path | None = None, progress: bool = True) -> Corpus:
    """The corpus of `path` (empty: the embedded one), from the cache or prepared now.

    `cache` overrides $ZSLX_CACHE, else $XDG_CACHE_HOME/zslx, else ~/.cache/zslx. The vocabulary is smaller than
    `vocab_size` where the text has no more pairs to merge. ValueError for a path without usable text, a vocabulary
    too small for the bytes, a cache that cannot be written.
    """
    if vocab_size < tokenizer.SMALLEST_VOCABULARY:
        raise ValueError(f"data.vocab_size={vocab_size}: must be at least {tokenizer.SMALLEST_VOCABULARY}")
    root, bar = cache_folder(cache), Progress("text", progress)
    note = _note(root, path, vocab_size)
    with _cache_errors(root):
        if note and (found := _noted(note)):
            return found
    sources, domains, skipped = _sources(path, bar)
    folder = root / f"text-{_sha256([RECIPE, tokenizers.__version__, vocab_size, sources])[:16]}"
    with _cache_errors(root):
        found = _found(folder)
        if found is None:
            found = _prepared(folder, domains, vocab_size, bar)
            if skipped:
                bar.say(f"{skipped} files of {path} were left out: empty or no UTF-8 text")
        if note:
            with suppress(PermissionError):  # a shared cache that is only read
                note.write_text(folder.name)
    return found


@contextmanager
def _cache_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the text cache {root} cannot be used: {error.strerror or error} "
            "(the environment variable ZSLX_CACHE names another place)"
        ) from error


def _sources(path: str, bar: Progress) -> tuple[Any, tuple[Domain, ...], int]:
    """What the cache's key is made of; a path's domains, which had to be read for it, and its skipped files."""
    if not path:
        return builtin.versions(), (), 0
    domains, skipped = documents.folder(path, lambda share: bar.at(0.4 * share, "reading"))
    return {d.name: [[x.name, x.digest] for x in d.documents] for d in domains}, domains, skipped


def _note(root: Path, path: str, vocab_size: int) -> Path | None:
    """The file that remembers the cache folder of a path whose files have not changed."""
    stamps = documents.stamps(path) if path else None
    return root / f"path-{_sha256([RECIPE, tokenizers.__version__, vocab_size, path, stamps])[:16]}" if stamps else None


def _noted(note: Path) -> Corpus | None:
    name = note.read_text(errors="replace") if note.exists() else ""
    return _found(note.parent / name) if re.fullmatch("text-[0-9a-f]{16}", name) else None


def _prepared(folder: Path, domains: tuple[Domain, ...], vocab_size: int, bar: Progress) -> Corpus:
    """The corpus, made by this process or by the one that holds the lock."""
    waiting = f"waiting for another process that prepares {folder}"
    with locked(folder.with_suffix(".lock"), lambda: bar.say(waiting)):
        try:
            return load(folder)
        except FileNotFoundError:
            pass
        except DamagedCache as damage:
            bar.say(f"{damage}; preparing again")
        _build(folder, domains or builtin.domains(lambda share: bar.at(0.4 * share, "reading")), vocab_size, bar)
    return load(folder)


def cache_folder(cache: str | Path | None = None) -> Path:
    if given := cache or os.environ.get("ZSLX_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "zslx"


# ------------------------------------------------------------------------------------------------- reading


def load(folder: Path) -> Corpus:
    """The corpus in a finished cache folder; FileNotFoundError if there is none, DamagedCache if it is not whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.pop("check") != _sha256(manifest):
            raise DamagedCache(f"{folder}/manifest.json was altered")
        for name, expected in manifest["files"].items():
            if (actual := _fingerprint(folder / name)) != expected:
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
        **streams,
    )


def _found(folder: Path) -> Corpus | None:
    try:
        return load(folder)
    except (FileNotFoundError, DamagedCache):
        return None


def _fingerprint(file: Path) -> list[int]:
    """[bytes, checksum] where the checksum covers at most 256 evenly spaced blocks of 256 KiB."""
    block, blocks = 2**18, 256
    size, checksum = file.stat().st_size, 0
    with file.open("rb") as stream:
        for i in range(min(blocks, -(-size // block))):
            if size > block * blocks:
                stream.seek(i * (size - block) // (blocks - 1))
            checksum = zlib.crc32(stream.read(block), checksum)
    return [size, checksum]


# ------------------------------------------------------------------------------------------------- writing


def _build(folder: Path, domains: Sequence[Domain], vocab_size: int, bar: Progress) -> None:
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a preparation that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    work = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    work.mkdir()
    try:
        with tokenizer.parallelism():
            manifest = _write_tokens(work, domains, vocab_size, bar)
        manifest["files"] = {file.name: _fingerprint(file) for file in sorted(work.iterdir())}
        manifest["check"] = _sha256(manifest)
        (work / "manifest.json").write_text(json.dumps(manifest))
        for written in (*work.iterdir(), work):
            _sync(written)
        if folder.exists():  # damaged; processes that have mapped its files keep them
            folder.rename(work.with_name(f"{work.name}-old"))
        work.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(work.with_name(f"{work.name}-old"), ignore_errors=True)
    bar.done(f"prepared {folder}")


def _write_tokens(work: Path, domains: Sequence[Domain], vocab_size: int, bar: Progress) -> dict[str, Any]:
    """Token files and tokenizer.json in `work`; what the manifest says of them."""
    bar.at(0.4, "separating held-out files")
    parts = [_split(domain) for domain in domains]
    bar.at(0.43, "training the tokenizer")
    training = [Domain(name=d.name, documents=tuple(p["train"])) for d, p in zip(domains, parts, strict=True)]
    (work / "tokenizer.json").write_text(tokenizer.trained(training, vocab_size).to_str(), encoding="utf-8")
    bpe = tokenizer.opened(work / "tokenizer.json")
    entries = bpe.get_vocab_size()
    dtype = np.dtype("<u2" if entries <= 2**16 else "<u4")
    total, done = sum(x.size for d in domains for x in d.documents), 0
    counts, described, digests = np.zeros(entries, dtype=np.int64), [], []
    for i, (domain, split_) in enumerate(zip(domains, parts, strict=True)):
        about: dict[str, Any] = {"name": domain.name}
        for part, texts in split_.items():
            name = f"{i:02d}-{slug(domain.name, 40)}.{part}.bin"
            written = np.zeros(entries, dtype=np.int64)
            with (work / name).open("wb") as stream:
                for read, tokens in tokenizer.encoded(bpe, texts):
                    stream.write(tokens.astype(dtype).tobytes())
                    written += np.bincount(tokens, minlength=entries)
                    done += read
                    bar.at(0.55 + 0.45 * done / total, "encoding")
            counts += written if part == "train" else 0
            size = sum(x.size for x in texts)
            about[part] = {"file": name, "tokens": int(written.sum()), "bytes": size, "documents": len(texts)}
            digests.append([domain.name, part, [x.digest for x in texts]])
        described.append(about)
    return {
        "recipe": RECIPE,
        "hash": _sha256([digests, (work / "tokenizer.json").read_text(encoding="utf-8")]),
        "vocab_size": entries,
        "dtype": dtype.str,
        "domains": described,
        "token_counts": counts.tolist(),
    }


def _split(domain: Domain) -> dict[str, list[Document]]:
    try:
        train, heldout = split(domain.documents)
    except ValueError as error:
        raise ValueError(f"data.path: the domain {domain.name!r}: {error}") from error
    return {"train": train, "heldout": heldout}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
