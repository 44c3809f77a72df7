"""A cache of tokenised text: memory-mapped files that are prepared once and that many processes share.

    CACHE/text-KEY/  00-python.train.bin  00-python.heldout.bin  ...   uint16 or uint32, little-endian
                     tokenizer.json       manifest.json

KEY is a sha256 of the recipe, the version of `tokenizers`, the vocabulary's size or the given tokenizer, and the
sources: package versions for the embedded corpus, the files' contents for a path, the revision for a data set of the
hub. CACHE/path-… remembers the key of files that did not change, so that they are not read at every start, and of a
data set of the hub, which is then never asked again. One process prepares under a lock while the others wait. It
writes into a folder of its own, syncs, writes the manifest last, and renames the folder, so that a folder of that name
is always complete. Opening checks sizes and checksums (all of a file up to 64 MB, evenly spaced blocks of a larger
one). A damaged cache is made again. A data set is prepared in CACHE/text-KEY.partial, from which a preparation that
was killed goes on (token_chunks.py).

`Corpus.hash` is the sha256 over every document of every domain and split, in order, and the tokenizer; of a data set,
over their tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from zslx.config.groups import DataConfig
from zslx.config.run_config import Config
from zslx.locking import locked
from zslx.progress import Progress
from zslx.slug import slug
from zslx.text import builtin, data_set, data_set_tokens, documents, token_chunks, tokenizer
from zslx.text.corpus import Corpus, DamagedCache, fingerprint, load, sha256, whole
from zslx.text.documents import Document, Domain
from zslx.text.heldout_split import split

RECIPE = 1  # raise when the same sources would give other tokens


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which text, and which tokens of it: the settings of `data` that decide."""

    path: str = ""
    vocab_size: int = 2048
    tokenizer: str = ""
    wanted: data_set_tokens.Wanted = field(default_factory=data_set_tokens.Wanted)

    @property
    def plain(self) -> bool:
        return not self.tokenizer and not data_set.is_data_set(self.path)


def prepare(path: str = "", vocab_size: int = 2048, cache: str | Path | None = None, progress: bool = True) -> Corpus:
    """The corpus of `path` (empty: the embedded one), from the cache or prepared now.

    `cache` overrides $ZSLX_CACHE, else $XDG_CACHE_HOME/zslx, else ~/.cache/zslx. The vocabulary is smaller than
    `vocab_size` where the text has no more pairs to merge. ValueError for a path without usable text, a vocabulary
    too small for the bytes, a cache that cannot be written.
    """
    return _opened(Source(path=path, vocab_size=vocab_size), cache, progress)


def corpus_of(data: DataConfig, cache: str | Path | None = None, progress: bool = True) -> Corpus:
    """The corpus that the settings ask for, from the cache or prepared now. ValueError as `prepare`, and for a data
    set or a tokenizer that cannot be read."""
    wanted = data_set_tokens.Wanted(data.text_column, data.domain_column, data.max_tokens)
    source = Source(path=data.path, vocab_size=data.vocab_size, tokenizer=data.tokenizer, wanted=wanted)
    return _opened(source, cache, progress)


def with_vocabulary(config: Config) -> Config:
    """The configuration with the vocabulary's size that its tokenizer fixes, for all that counts parameters."""
    if not config.data.tokenizer:
        return config
    entries = corpus_of(config.data).vocab_size
    return dataclasses.replace(config, data=dataclasses.replace(config.data, vocab_size=entries))


def _opened(source: Source, cache: str | Path | None, progress: bool) -> Corpus:
    if not source.tokenizer and source.vocab_size < tokenizer.SMALLEST_VOCABULARY:
        raise ValueError(f"data.vocab_size={source.vocab_size}: must be at least {tokenizer.SMALLEST_VOCABULARY}")
    root, bar = cache_folder(cache), Progress("text", progress)
    note = _note(root, source)
    with _cache_errors(root):
        if note and (found := _noted(note)):
            _checked(found.vocab_size, source)
            return found
    given = tokenizer.given(source.tokenizer) if source.tokenizer else None
    vocabulary: Any = source.vocab_size
    if given:
        _checked(tokenizer.entries(given[0]), source)
        vocabulary = [hashlib.sha256(given[0].to_str().encode()).hexdigest(), given[1]]
    kept = ""
    if data_set.is_data_set(source.path):
        data = data_set.found(source.path, lambda share: bar.at(0.0, "checksums", f" {share:.0%}"))
        sources: Any = [data.identity, dataclasses.astuple(source.wanted)]
        kept = "; what is done is kept, and the same command goes on"
    else:
        sources, domains, skipped = _sources(source.path, bar)
    folder = root / f"text-{sha256([RECIPE, tokenizers.__version__, vocabulary, sources])[:16]}"
    with _cache_errors(root, kept):
        prepared = whole(folder)
        if prepared is None and data_set.is_data_set(source.path):
            prepared = _prepared(folder, lambda: _build_data_set(folder, data, source, given, bar), bar)
        elif prepared is None:
            prepared = _prepared(folder, lambda: _build(folder, domains, source.vocab_size, given, bar), bar)
            if skipped:
                bar.say(f"{skipped} files of {source.path} were left out: empty or no UTF-8 text")
        if note:
            with suppress(PermissionError):  # a shared cache that is only read
                note.write_text(folder.name)
    return prepared


def _checked(entries: int, source: Source) -> None:
    """ValueError where the settings ask for another vocabulary than the tokenizer's."""
    if source.tokenizer and source.vocab_size not in (0, entries):
        raise ValueError(
            f"data.vocab_size={source.vocab_size}: data.tokenizer={source.tokenizer!r} has {entries} entries, and they "
            "are the vocabulary; leave data.vocab_size out"
        )


@contextmanager
def _cache_errors(root: Path, kept: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the text cache {root} cannot be used: {error.strerror or error} "
            f"(the environment variable ZSLX_CACHE names another place){kept}"
        ) from error


def _sources(path: str, bar: Progress) -> tuple[Any, tuple[Domain, ...], int]:
    """What the cache's key is made of; a path's domains, which had to be read for it, and its skipped files."""
    if not path:
        return builtin.versions(), (), 0
    domains, skipped = documents.folder(path, lambda share: bar.at(0.4 * share, "reading"))
    return {d.name: [[x.name, x.digest] for x in d.documents] for d in domains}, domains, skipped


def _note(root: Path, source: Source) -> Path | None:
    """The file that remembers the cache folder of a source that has not changed."""
    if not source.path and source.plain:
        return None
    stamps = documents.stamps(source.path) if source.plain else _stamps(source)
    if stamps is None:
        return None
    settings = [] if source.plain else [source.tokenizer, *dataclasses.astuple(source.wanted)]
    key = [RECIPE, tokenizers.__version__, source.vocab_size, source.path, stamps, *settings]
    return root / f"path-{sha256(key)[:16]}"


def _stamps(source: Source) -> list[Any] | None:
    """What tells whether files of text and tokenizer have changed; names on the hub stand for themselves."""
    text: Any = "hub"
    if not data_set.is_data_set(source.path):
        text = documents.stamps(source.path) if source.path else builtin.versions()
    elif (place := data_set.local_files(source.path)) is not None:
        text = documents.stamps(place)
    local = source.tokenizer and Path(source.tokenizer).expanduser().exists()
    own = documents.stamps(source.tokenizer) if local else "hub"
    return None if text is None or own is None else [text, own]


def _noted(note: Path) -> Corpus | None:
    name = note.read_text(errors="replace") if note.exists() else ""
    return whole(note.parent / name) if re.fullmatch("text-[0-9a-f]{16}", name) else None


def _prepared(folder: Path, build: Callable[[], None], bar: Progress) -> Corpus:
    """The corpus, made by this process or by the one that holds the lock."""
    waiting = f"waiting for another process that prepares {folder}"
    with locked(folder.with_suffix(".lock"), lambda: bar.say(waiting)):
        try:
            return load(folder)
        except FileNotFoundError:
            pass
        except DamagedCache as damage:
            bar.say(f"{damage}; preparing again")
        build()
    return load(folder)


def cache_folder(cache: str | Path | None = None) -> Path:
    if given := cache or os.environ.get("ZSLX_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "zslx"


# ------------------------------------------------------------------------------------------------- writing


def _build(
    folder: Path, domains: Sequence[Domain], vocab_size: int, given: tuple[Tokenizer, int] | None, bar: Progress
) -> None:
    domains = domains or builtin.domains(lambda share: bar.at(0.4 * share, "reading"))
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a preparation that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    work = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    work.mkdir()
    try:
        with tokenizer.parallelism():
            manifest = _write_tokens(work, domains, vocab_size, bar, given)
        _write_manifest(work, manifest)
        _put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    bar.done(f"prepared {folder}")


def _build_data_set(
    folder: Path, data: data_set.DataSet, source: Source, given: tuple[Tokenizer, int] | None, bar: Progress
) -> None:
    """Its work folder stays until all is done: a preparation goes on from it."""
    work = folder.parent / f"{folder.name}.partial"
    work.mkdir(exist_ok=True)
    if whole(work) is None:
        with tokenizer.parallelism():
            manifest = data_set_tokens.write(work, data, source.wanted, source.vocab_size, given, bar)
        _write_manifest(work, manifest)
    token_chunks.leave(work)
    _put_in_place(work, folder)
    bar.done(f"prepared {folder}")


def _write_manifest(work: Path, manifest: dict[str, Any]) -> None:
    """The manifest, written last: what it names is on the disk before it is."""
    names = ["tokenizer.json", *(d[part]["file"] for d in manifest["domains"] for part in ("train", "heldout"))]
    manifest |= {"recipe": RECIPE, "files": {name: fingerprint(work / name) for name in sorted(names)}}
    manifest["check"] = sha256(manifest)
    for name in names:
        _sync(work / name)
    (work / "manifest.json").write_text(json.dumps(manifest))
    _sync(work / "manifest.json")


def _put_in_place(work: Path, folder: Path) -> None:
    old = work.with_name(f"{work.name}-old")
    try:
        _sync(work)
        if folder.exists():  # damaged; processes that have mapped its files keep them
            folder.rename(old)
        work.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_tokens(
    work: Path, domains: Sequence[Domain], vocab_size: int, bar: Progress, given: tuple[Tokenizer, int] | None
) -> dict[str, Any]:
    """Token files and tokenizer.json in `work`; what the manifest says of them."""
    bar.at(0.4, "separating held-out files")
    parts = [_split(domain) for domain in domains]
    bar.at(0.43, "training the tokenizer" if given is None else "opening the tokenizer")
    training = [Domain(name=d.name, documents=tuple(p["train"])) for d, p in zip(domains, parts, strict=True)]
    made, end = given or (tokenizer.trained(training, vocab_size), 0)
    (work / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    bpe = tokenizer.opened(work / "tokenizer.json")
    entries = tokenizer.entries(bpe)
    dtype = np.dtype("<u2" if entries <= 2**16 else "<u4")
    total, done = sum(x.size for d in domains for x in d.documents), 0
    counts, described, digests = np.zeros(entries, dtype=np.int64), [], []
    for i, (domain, split_) in enumerate(zip(domains, parts, strict=True)):
        about: dict[str, Any] = {"name": domain.name}
        for part, texts in split_.items():
            name = f"{i:02d}-{slug(domain.name, 40)}.{part}.bin"
            written = np.zeros(entries, dtype=np.int64)
            with (work / name).open("wb") as stream:
                for read, tokens in tokenizer.encoded(bpe, texts, end, runs=given is None):
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
        "hash": sha256([digests, (work / "tokenizer.json").read_text(encoding="utf-8"), *([end] if end else [])]),
        "vocab_size": entries,
        "end_of_text": end,
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
