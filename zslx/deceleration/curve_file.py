"""Reads a loss curve: CSV with columns `step` and `loss`, JSON lines with these keys, or a run folder.

A CSV has a header line, commas, and a row a step: whole steps that increase, losses in nats per token. Other names of
the two columns can be given; an empty loss in such a file, as in exports of sparse metrics, is passed over.

Steps must increase; a row that repeats an earlier one exactly is dropped (a log that was appended twice); step 0
(before training) has no place on a logarithmic axis and is dropped too. Whatever else is wrong is a `CurveError`
that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class CurveError(ValueError):
    """A file that is no loss curve."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """steps (N,) > 0 and increasing, losses (N,) > 0 in nats per token, the warm-up in steps where known."""

    steps: Array
    losses: Array
    warmup: int | None = None

    @property
    def log_losses(self) -> Array:
        """log L (N,)."""
        return np.log(self.losses)

    @property
    def gap(self) -> float:
        """Median steps between neighbouring points: above 1 the curve was thinned."""
        return float(np.median(np.diff(self.steps))) if self.steps.size > 1 else 1.0


def curve(steps: ArrayLike, losses: ArrayLike, warmup: int | None = None) -> Curve:
    """A checked curve from two sequences of equal length; raises ValueError."""
    s, y = np.asarray(steps, dtype=np.float64).ravel(), np.asarray(losses, dtype=np.float64).ravel()
    if s.size != y.size:
        raise ValueError(f"{s.size} steps but {y.size} losses")
    for name, bad in (
        ("steps must be finite and not negative", ~np.isfinite(s) | (s < 0)),
        ("steps must increase", np.diff(s, prepend=-np.inf) <= 0),
        ("losses must be finite and above 0", ~np.isfinite(y) | ~(y > 0)),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(f"{name}: entry {at} has step {s[at]:g}, loss {y[at]:g}")
    return Curve(steps=s[s > 0], losses=y[s > 0], warmup=warmup)


Columns = tuple[str, str]


def read(path: str | Path, columns: Columns = ("step", "loss")) -> Curve:
    """The curve in a CSV file, a .jsonl file or a run folder (its steps.jsonl and config.json).

    `columns` are the names of step and loss in a CSV header or in the lines' objects.
    """
    path = Path(path)
    warmup = None
    if path.is_dir():
        warmup = _warmup(path / "config.json")
        path = path / "steps.jsonl"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CurveError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CurveError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    if not text.strip():
        raise CurveError(f"{path}: the file is empty")
    if text.lstrip().startswith("["):
        raise CurveError(f"{path}: a JSON array; JSON lines are needed, an object with `step` and `loss` on each")
    lines = (_json_lines if text.lstrip().startswith("{") else _csv_lines)(path, text, columns)
    steps: list[float] = []
    losses: list[float] = []
    seen: set[tuple[float, float]] = set()
    for line, step, loss in lines:
        s, y = _number(path, line, "step", step), _number(path, line, "loss", loss)
        if steps and s <= steps[-1]:
            if (s, y) in seen:
                continue
            raise CurveError(f"{path}:{line}: steps must increase, {s:g} comes after {steps[-1]:g}")
        if s < 0 or s != int(s):
            raise CurveError(f"{path}:{line}: step is {s:g}; a whole number, not negative, is needed")
        if y <= 0:
            raise CurveError(f"{path}:{line}: loss is {y:g}; it must be above 0")
        seen.add((s, y))
        steps.append(s)
        losses.append(y)
    if not any(steps):
        raise CurveError(f"{path}: no row {'with a step above 0' if steps else 'after the header'}")
    return curve(steps, losses, warmup)


def _csv_lines(path: Path, text: str, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(line number, step, loss) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip().lower() for name in next(reader)]
        wanted = [name.strip().lower() for name in columns]
        for column in wanted:
            if header.count(column) != 1:
                shown = ", ".join(header[:6])[:60]
                what = f"one column `{column}` is needed, the header has: {shown!a}"
                raise CurveError(f"{path}:1: {what}; --columns STEP,LOSS names others")
        step, loss = header.index(wanted[0]), header.index(wanted[1])
        sparse = wanted != ["step", "loss"]
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(step, loss):
                raise CurveError(f"{path}:{reader.line_num}: the row has {len(row)} of {len(header)} columns")
            if not (sparse and not row[loss].strip()):
                yield reader.line_num, row[step], row[loss]
    except csv.Error as error:
        raise CurveError(f"{path}:{reader.line_num}: {error}") from None


def _json_lines(path: Path, text: str, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(line number, step, loss) of each line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield number, record[columns[0]], record[columns[1]]
        except (ValueError, RecursionError):
            raise CurveError(f"{path}:{number}: not a line of JSON") from None
        except (KeyError, TypeError):
            raise CurveError(f"{path}:{number}: an object with `{columns[0]}` and `{columns[1]}` is needed") from None


def _number(path: Path, line: int, name: str, value: Any) -> float:
    if value is None:
        raise CurveError(f"{path}:{line}: {name} is null (a run that diverged?)")
    try:
        number = float(value) if not isinstance(value, bool) and "_" not in str(value) else math.nan
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CurveError(f"{path}:{line}: {name} is {str(value)[:40]!a}; a finite number is needed")
    return number


def _warmup(path: Path) -> int | None:
    """optim.warmup of a run's configuration; None where the run does not say."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("optim", {}).get("warmup")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise CurveError(f"{path}: no warm-up can be read ({type(error).__name__})") from None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CurveError(f"{path}: optim.warmup is {str(value)[:40]!a}; a whole number is needed")
    return value
