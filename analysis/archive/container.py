"""The file of an archive: a zip of a results folder, with a checksum of each file in it.

    MANIFEST.json                     format, versions, size and sha256 of each of the others
    comparison.json                   what the study says, as `zslx compare --json` prints it: the claim
    studies/<name>/study.json         arms, sizes, seeds, and the identity of each trial
    trials/<identity>/                config.json, manifest.json, the records of each trial, downstream scores
    sources/<digest>-<file>           sources of interventions

Unzipped, it is a results folder that `zslx compare` reads. The same files give the same bytes: names are sorted, and
times and owners are not kept. What is read here may come from anybody, so that names are taken from this list alone and
sizes are bounded before anything is unpacked; nothing is imported or run. Errors are ValueErrors of one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zslx.runs.json_files import dumps, loads, sync_folder
from zslx.runs.shapes import Shape, check

FORMAT = 1
MANIFEST, COMPARISON, SOURCES = "MANIFEST.json", "comparison.json", "sources"
NAME = re.compile(
    r"MANIFEST\.json|comparison\.json|studies/\w[\w.-]{0,199}/study\.json|sources/[0-9a-f]{16}-\w[\w.-]{0,99}"
    r"|trials/[0-9a-f]{8,64}/(config\.json|manifest\.json|steps\.jsonl|probes\.jsonl|timing\.jsonl"
    r"|evaluations\.jsonl)",
    re.ASCII,
)
SHAPE: Shape = {"format": int, "zslx": str, "versions": {"*": [str]}, "files": {"*": {"bytes": int, "sha256": str}}}
MOST_FILES = 200_000
MOST_BYTES = 16 << 30  # of all files unpacked
MOST_BYTES_OF_FILE = 256 << 20  # of a file, which may be read as a whole; a plain run of a million steps has half
MOST_PACKED = 200  # times smaller than unpacked: records are packed to a fifth, a bomb to a thousandth
BLOCK = 1 << 20


def pack(folder: Path, out: Path, about: Mapping[str, Any]) -> None:
    """Write the files of `folder` as the archive `out`, atomically; `about` goes into its manifest.

    ValueError for a file that `unpack` would refuse.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files: dict[str, dict[str, Any]] = {}
    temporary = out.with_name(f".{out.name[:80]}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as file:
            for name in names:
                assert NAME.fullmatch(name), f"{name} could not be read again"
                if (size := (folder / name).stat().st_size) > MOST_BYTES_OF_FILE:
                    raise ValueError(f"{name}: {size} bytes, allowed in an archive are {MOST_BYTES_OF_FILE} a file")
                with (folder / name).open("rb") as source, file.open(_entry(name), "w") as target:
                    files[name] = _copy(source, target)
            manifest = {"format": FORMAT, **about, "files": files}
            with file.open(_entry(MANIFEST), "w") as target:
                target.write((dumps(manifest, indent=1) + "\n").encode())
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.absolute().parent)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    return entry


def _copy(source: Any, target: Any) -> dict[str, Any]:
    """Copy a file; its size in bytes and its sha256."""
    size, whole = 0, hashlib.sha256()
    while block := source.read(BLOCK):
        size += len(block)
        whole.update(block)
        target.write(block)
    return {"bytes": size, "sha256": whole.hexdigest()}


def unpack(archive: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(manifest, what is wrong with which file) of an archive, whose files are put into `folder`.

    ValueError where it is no archive, or one that nobody should unpack.
    """
    with archive.open("rb") as raw, _told(archive), zipfile.ZipFile(raw) as file:
        entries = {entry.filename: entry for entry in _safe(archive, file.infolist())}
        if MANIFEST not in entries:
            raise ValueError(f"{archive}: {MANIFEST} is missing: not written by zslx archive, or cut")
        manifest = loads(file.read(MANIFEST))
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{archive}: {MANIFEST}: format {str(manifest.get('format'))[:20]}, known is {FORMAT}")
        check(f"{archive}: {MANIFEST}", manifest, SHAPE)
        faults = [f"{name}: is not in {MANIFEST}" for name in sorted(entries.keys() - manifest["files"] - {MANIFEST})]
        for name, kept in manifest["files"].items():
            if name not in entries:
                faults.append(f"{name}: is missing")
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(name) as source, path.open("wb") as target:
                found = _copy(source, target)
            if found != kept:
                faults.append(f"{name}: {found['bytes']} bytes, sha256 {found['sha256'][:16]}…; {MANIFEST} says others")
    return manifest, faults


@contextlib.contextmanager
def _told(archive: Path) -> Iterator[None]:
    """What reading a file that is damaged may raise, as a ValueError that names it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{archive}: no whole zip file: {str(error) or type(error).__name__}") from None
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(archive)) else f"{archive}: {text}") from None


def _safe(archive: Path, entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The entries, each a file that an archive has; ValueError for any other, for duplicates, and for bombs."""
    if len(entries) > MOST_FILES:
        raise ValueError(f"{archive}: {len(entries)} files, allowed are {MOST_FILES}")
    for entry in entries:
        name, kind = entry.filename, entry.external_attr >> 16 & 0o170000
        if not NAME.fullmatch(name):
            raise ValueError(f"{archive}: {name[:100]!r} is no file of an archive")
        if kind not in (0, 0o100000):
            raise ValueError(f"{archive}: {name} is no plain file")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise ValueError(f"{archive}: {name} is encrypted or packed in a way that zslx archive does not use")
        if entry.file_size > MOST_BYTES_OF_FILE:
            raise ValueError(f"{archive}: {name} has {entry.file_size} bytes, allowed are {MOST_BYTES_OF_FILE}")
        if entry.file_size > max(BLOCK, MOST_PACKED * entry.compress_size):
            raise ValueError(f"{archive}: {name} unpacks to {entry.file_size} bytes from {entry.compress_size}: a bomb")
    if (size := sum(entry.file_size for entry in entries)) > MOST_BYTES:
        raise ValueError(f"{archive}: unpacks to {size} bytes, allowed are {MOST_BYTES}")
    name, times = Counter(entry.filename for entry in entries).most_common(1)[0] if entries else ("", 0)
    if times > 1:
        raise ValueError(f"{archive}: {name} stands in it {times} times")
    return entries
