"""The text: documents of several domains. Here from any folder; zslx/text/builtin.py has the default.

Text of one's own is a folder, or a glob such as `notes/**/*.md`. Each sub folder is a domain; files that lie
directly in the folder form a domain named after it. Files that are no UTF-8 text are skipped and counted, files
with the same content count once, hidden ones are not looked at.
"""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

Progress = Callable[[float], None]  # is told the share that is done


def silent(share: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file's text. `name` is its path relative to its source; `digest` the sha256 of its UTF-8 bytes."""

    name: str
    digest: str
    size: int  # bytes of UTF-8
    file: Path | None = None  # a user's file, read again when needed: a large corpus need not fit in memory
    content: str | None = None

    @property
    def text(self) -> str:
        if self.content is not None:
            return self.content
        assert self.file is not None
        text = read_text(self.file)
        if text is None or hashlib.sha256(text.encode()).hexdigest() != self.digest:
            raise ValueError(f"data.path: {self.file} changed while it was being prepared; start again")
        return text


@dataclass(frozen=True, kw_only=True)
class Domain:
    name: str
    documents: tuple[Document, ...]


def read_text(file: Path) -> str | None:
    """The file as UTF-8 text, or None where it is binary, in another encoding, or empty."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"data.path: cannot read {file}: {error.strerror or error}") from error
    if b"\0" in content:
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def document_of(name: str, text: str, file: Path | None = None) -> Document:
    """The document of a text; a `file` given is read again instead of keeping the text."""
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    return Document(name=name, digest=digest, size=len(content), file=file, content=None if file else text)


def folder(path: str, progress: Progress = silent) -> tuple[tuple[Domain, ...], int]:
    """The domains of a folder or glob, in the order of their names, and the number of files skipped.

    Files with the same content count once. ValueError where nothing is left.
    """
    root, files = _matches(path)
    domains: dict[str, list[Document]] = {}
    seen: set[str] = set()
    skipped = 0
    for i, file in enumerate(files):
        progress(i / len(files))
        relative = file.relative_to(root)
        text = read_text(file)
        if text is None:
            skipped += 1
            continue
        document = document_of(relative.as_posix(), text, file)
        if document.digest not in seen:
            seen.add(document.digest)
            name = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name or "text"
            domains.setdefault(name, []).append(document)
    if not domains:
        raise ValueError(f"data.path={path!r}: no text in its files ({skipped}, each empty or no UTF-8 text)")
    return tuple(Domain(name=name, documents=tuple(domains[name])) for name in sorted(domains)), skipped


def stamps(path: str) -> list[list[str | int]] | None:
    """[name, bytes, inode, change time] of each file of a folder or glob, read without opening any.

    While they stay the same so does the text: no program can set a change time. None where a file is so young that
    a second write could have left the same time.
    """
    _, files = _matches(path)
    found = [(file, file.stat()) for file in files]
    if max(stat.st_ctime for _, stat in found) > time.time() - 2:
        return None
    return [[str(file.absolute()), stat.st_size, stat.st_ino, stat.st_ctime_ns] for file, stat in found]


def _matches(path: str) -> tuple[Path, list[Path]]:
    """The folder that domains are counted from, and the files below it, sorted; hidden ones are left out."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = list(root.rglob("*"))
    elif root.is_file():
        root, files = root.parent, [root]
    elif glob.has_magic(path):
        pattern = str(root)
        root = Path(*takewhile(lambda part: not glob.has_magic(part), root.parts))
        files = [Path(match) for match in glob.glob(pattern, recursive=True)]
    else:
        raise ValueError(f"data.path={path!r}: no such file or folder")
    visible = [
        file
        for file in files
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not visible:
        raise ValueError(f"data.path={path!r}: no files there")
    return root, sorted(visible, key=lambda file: file.relative_to(root).as_posix())
