"""The folder that a run leaves behind: append, cut back on resume, read.

    config.json     resolved configuration           manifest.json  status, versions, hardware, totals
    steps.jsonl     a line a step                    probes.jsonl   a line a probe step, every instrument
    timing.jsonl    whatever depends on the clock    checkpoints/   (zslx/runs/checkpoints.py)

Lines are strict JSON objects with an increasing integer `step`; a number that is not finite is written as
null. JSON files are replaced atomically (new file, fsync, rename, fsync of the folder). Lines are appended
and made durable by `flush(sync=True)`: the trainer calls it before each checkpoint, so that every line up to
a checkpoint's step is on disk when the checkpoint is. A killed process leaves at most a torn last line, which
readers leave out and `cut_to` removes; an unreadable line anywhere else is an error, never skipped.

Torch-free: analysis reads runs through this file alone. Exactness (cut and resume equals never stopped, byte
for byte) is checked by tests/unit/test_records.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from zslx.runs.shapes import CONFIG, MANIFEST, check

LINE_FILES = ("steps", "probes", "timing")
TAIL = 16384  # bytes read from the end of a records file: more than its longest line
STATUSES = ("running", "finished", "diverged", "failed")


class RunRecords:
    """Appends to the records of one run. One writer a folder; readers may read at any time.

    Opening an existing folder does not change it; call `cut_to(step)` before appending to one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, BinaryIO] = {}

    def append_step(self, line: Mapping[str, Any]) -> None:
        self._append("steps", line)

    def append_probe(self, line: Mapping[str, Any]) -> None:
        self._append("probes", line)

    def append_timing(self, line: Mapping[str, Any]) -> None:
        self._append("timing", line)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        assert isinstance(line["step"], int), "a record without its step could not be cut on resume"
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.jsonl").open("ab")
        self._files[name].write(dumps(line).encode() + b"\n")

    def flush(self, sync: bool = True) -> None:
        """Hand every appended line to the system; with `sync` also to the disk."""
        for file in self._files.values():
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if sync and self._files:
            _sync_folder(self.folder)

    def cut_to(self, step: int) -> None:
        """Forget everything after `step`, torn lines included.

        Raises ValueError when steps.jsonl ends before `step`: its lines are written before the checkpoint.
        """
        self.close()
        for name in LINE_FILES:
            path = self.folder / f"{name}.jsonl"
            data = path.read_bytes() if path.exists() else b""
            keep, last = _length_up_to(data, step)
            if name == "steps" and last != step:
                raise ValueError(f"{path} ends at step {last}, before the checkpoint at step {step}")
            if keep < len(data):
                with path.open("r+b") as file:
                    file.truncate(keep)
                    os.fsync(file.fileno())

    def close(self) -> None:
        self.flush(sync=False)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _length_up_to(data: bytes, step: int) -> tuple[int, int]:
    """(bytes of the whole lines up to `step`, the last such step or 0), found from the end backwards."""
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        line = data[start:end]
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith(b"\n") and (found := loads(line)["step"]) <= step:
                return end, found
        end = start
    return 0, 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read. The lines are read on first use, so that a thousand runs cost what is looked at."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def status(self) -> str:
        status: str = self.manifest["status"]
        return status

    @cached_property
    def steps(self) -> dict[str, np.ndarray]:
        """Columns of steps.jsonl, float64 (step, tokens, loss, ...): nan where a line has no such number."""
        return columns(self._lines("steps"))

    @cached_property
    def probes(self) -> list[dict[str, Any]]:
        return self._lines("probes")

    @cached_property
    def timing(self) -> list[dict[str, Any]]:
        return self._lines("timing")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of one file, whose steps increase; none when the file is not there yet."""
        path = self.folder / f"{name}.jsonl"
        lines = read_lines(path) if path.exists() else []
        last = -1
        for number, line in enumerate(lines, 1):
            if type(line.get("step")) is not int or line["step"] <= last:
                raise ValueError(f"{path}:{number}: step {line.get('step')!r} does not come after {last}")
            last = line["step"]
        return lines


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. ValueError, naming the file, when it holds none or a file is damaged."""
    return Run(folder=Path(folder), config=read_config(folder), manifest=read_manifest(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of the run in `folder`. ValueError, naming file and key, when it is none."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    check(path, config, CONFIG)
    return config


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the run in `folder`: of one that is about to start, its status alone. ValueError as above."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {"status": "running"}
    manifest = read_json(path)
    check(path, manifest, MANIFEST)
    if (status := manifest["status"]) not in STATUSES:
        raise ValueError(f"{path}: status {status!r} is none of {', '.join(STATUSES)}")
    return manifest


def numbers(node: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a line under the names that lead to it: `dt1_heldout.D`."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from numbers(value, separator, f"{prefix}{key}{separator}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Each key that has numbers (or booleans) as a float64 column, nan where a line lacks it or has null."""
    keys = dict.fromkeys(k for line in lines for k, value in line.items() if isinstance(value, (int, float)))
    return {key: np.array([_number(line.get(key)) for line in lines], dtype=np.float64) for key in keys}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
