"""Files of JSON: lines that are appended, and objects that are replaced as a whole.

All of it is strict JSON; a number that is not finite is written as null. A JSON object is replaced atomically (new
file, fsync, rename, fsync of the folder). Lines are appended, and durable after `flush(sync=True)`. A killed writer
leaves at most a torn last line, which readers leave out and `cut` removes. An unreadable line anywhere else is an
error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

TAIL = 16384  # bytes read from the end of a file of lines: more than its longest line


class JsonLines:
    """A file of JSON objects, a line each. One writer; readers may read at any time.

    Opening a file that is there does not change it; call `cut` before appending to one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._new = False  # its name is not on the disk yet

    def append(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            self._new = not self.path.exists()
            self._file = self.path.open("ab")
        self._file.write(dumps(line).encode() + b"\n")

    def flush(self, sync: bool = True) -> None:
        """Hand every appended line to the system; with `sync` also to the disk."""
        if self._file is None:
            return
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())
            if self._new:
                sync_folder(self.path.parent)
                self._new = False

    def cut(self, keep: Callable[[Mapping[str, Any]], bool] = lambda line: True) -> Mapping[str, Any]:
        """Forget what comes after the last line that is to be kept, torn lines included; returns that line, or {}."""
        self.close()
        data = self.path.read_bytes() if self.path.exists() else b""
        length, last = _length_up_to(data, keep)
        if length < len(data):
            with self.path.open("r+b") as file:
                file.truncate(length)
                os.fsync(file.fileno())
        return last

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _length_up_to(data: bytes, keep: Callable[[Mapping[str, Any]], bool]) -> tuple[int, Mapping[str, Any]]:
    """(bytes up to the last whole line that is to be kept, that line), found from the end backwards."""
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        line = data[start:end]
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith(b"\n") and keep(found := loads(line)):
                return end, found
        end = start
    return 0, {}


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, without a torn last line. ValueError names the file and the line."""
    rows = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(loads(line))
        except ValueError as error:
            # What a killed writer was writing has no line end yet.
            if number < len(lines):
                raise ValueError(f"{path}:{number}: {error}") from None
    return rows


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a records file; {} where there is none, or one that is damaged.

    Cheap: reads the end of the file alone.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    with contextlib.suppress(ValueError, IndexError):
        line = loads(lines[-1])
        return line if type(line.get("step")) is int else {}
    return {}


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, naming the file, when it is missing or damaged."""
    try:
        return loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def loads(data: bytes) -> dict[str, Any]:
    """Strict JSON (no NaN, no Infinity), an object."""
    try:
        value = _DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def dumps(value: Any, **options: Any) -> str:
    """Strict JSON; a number that is not finite becomes null, a numpy or torch value a number or a list."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except (ValueError, TypeError):
        return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _whole_number(digits: str) -> int:
    """An integer, if a float can hold it: columns of records are floats."""
    value = int(digits)
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"{digits[:20]}... has {len(digits)} digits: no number of a record has so many")
    return value


# Kept: making one costs as much as a line.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=_whole_number)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a JSON file: readers see the old file or the new one, after a power cut too."""
    write_atomic(path, (dumps(value, indent=1) + "\n").encode())


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replace a file by `data`: written beside it, fsync, rename, fsync of the folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_left(folder: Path) -> None:
    """Remove what writers that were killed left of files in `folder`. For whoever holds its lock."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
