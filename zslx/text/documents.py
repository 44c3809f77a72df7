"""Documents of several domains, found in a folder of the user's. The embedded text is in zslx/text/builtin.py.

The text is a folder, or a glob such as `notes/**/*.md`. Each subfolder is a domain. Files directly in the folder form
a domain that is named after it. Files that are empty or not UTF-8 text are skipped and counted. Files with the same
content count once. Hidden files are ignored.

A file is never held in memory as a whole: it is read in blocks, each time its text is needed.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

BLOCK = 2**20  # bytes read at once

Progress = Callable[[float], None]  # called with the share of the work that is done


def silent(share: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file's text. `name` is its path relative to its source; `digest` the sha256 of its UTF-8 bytes."""

    name: str
    digest: str
    size: int  # bytes of UTF-8
    file: Path | None = None  # where a user's text is read from
    content: str | None = None  # the text of a document that is no file

    def blocks(self) -> Iterator[str]:
        """The text in parts. ValueError, at the end, where the file is not what it was when it was found."""
        if self.content is not None:
            yield self.content
            return
        assert self.file is not None
        digest = hashlib.sha256()
        try:
            for block in text_blocks(self.file):
                digest.update(block.encode())
                yield block
        except NotText:
            digest.update(b"changed")
        if digest.hexdigest() != self.digest:
            raise ValueError(f"data.path: {self.file} changed while it was being prepared; start again")

    @property
    def text(self) -> str:
        return "".join(self.blocks())


@dataclass(frozen=True, kw_only=True)
class Domain:
    name: str
    documents: tuple[Document, ...]


class NotText(Exception):
    """The file is binary or in another encoding."""


def text_blocks(file: Path) -> Iterator[str]:
    """The file's text in parts of about BLOCK characters, without a byte order mark. NotText if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                if b"\0" in block:
                    raise NotText
                yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except OSError as error:
        raise ValueError(f"data.path: cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise NotText from error


def read_text(file: Path) -> str | None:
    """The file as UTF-8 text, or None where it is binary, in another encoding, or empty."""
    try:
        text = "".join(text_blocks(file))
    except NotText:
        return None
    return text if text.strip() else None


def document_of(name: str, text: str) -> Document:
    """The document of a text that is held in memory."""
    content = text.encode()
    return Document(name=name, digest=hashlib.sha256(content).hexdigest(), size=len(content), content=text)


def file_document(name: str, file: Path) -> Document | None:
    """The document of a file, or None where the file is binary, in another encoding, or empty."""
    digest, size, blank = hashlib.sha256(), 0, True
    try:
        for block in text_blocks(file):
            content = block.encode()
            digest.update(content)
            size += len(content)
            blank = blank and not block.strip()
    except NotText:
        return None
    return None if blank else Document(name=name, digest=digest.hexdigest(), size=size, file=file)


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
        document = file_document(relative.as_posix(), file)
        if document is None:
            skipped += 1
            continue
        if document.digest not in seen:
            seen.add(document.digest)
            name = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name or "text"
            domains.setdefault(name, []).append(document)
    if not domains:
        raise ValueError(f"data.path={path!r}: none of its {skipped} files has UTF-8 text")
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
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:  # ~name
        raise ValueError(f"data.path={path!r}: there is no user {path[1:].split('/')[0]!r}") from error
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
    for file in visible:
        name = Path(root.resolve().name) / file.relative_to(root)
        try:
            str(name).encode()
        except UnicodeEncodeError as error:  # names decide what is held out, by their UTF-8 bytes
            raise ValueError(f"data.path={path!r}: the name {str(name)!r} is not UTF-8; rename it") from error
    return root, sorted(visible, key=lambda file: file.relative_to(root).as_posix())
