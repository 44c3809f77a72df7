"""Reads a loss curve from a CSV file, a file of JSON lines, or a run folder.

A CSV file has a header line, commas, and one row a step. Its columns `step` and `loss` hold whole numbers that
increase, and losses in nats per token; other columns are ignored. JSON lines hold an object with these two keys on
each line. A run folder is read from its steps.jsonl, and its config.json gives the warm-up.

Files of other programs name their columns differently, so the two names can be given. Exports of sparse metrics leave
cells empty; where names are given, rows with an empty loss are skipped.

Two kinds of rows are dropped: those that repeat an earlier row exactly (a log that was appended twice), and step 0
(before training), which has no place on a logarithmic axis. Whatever else is wrong raises a `CurveError` of one line
that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zslx.deceleration.loss_curve import Curve, curve

Columns = tuple[str, str]
STEP_AND_LOSS: Columns = ("step", "loss")
# Characters of a list of columns in an error: all of a tracker's export, and still one line for a file that is no CSV.
SHOWN = 300


class CurveError(ValueError):
    """A file from which no loss curve can be read."""


def read(path: str | Path, columns: Columns = STEP_AND_LOSS) -> Curve:
    """The loss curve in a CSV file, a file of JSON lines or a run folder. Raises `CurveError`.

    `columns` are the names of step and loss, in the header of a CSV file or in the objects of JSON lines.
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
    return from_rows(path, lines, columns, warmup)


def from_rows(
    path: Path, rows: Iterable[tuple[int, Any, Any]], columns: Columns = STEP_AND_LOSS, warmup: int | None = None
) -> Curve:
    """The loss curve of rows (line, step, loss), whose numbers may be texts. Raises `CurveError`."""
    steps: list[float] = []
    losses: list[float] = []
    seen: set[tuple[float, float]] = set()
    for line, step, loss in rows:
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
    if not steps:
        raise CurveError(f"{path}: no row with a `{columns[0]}` and a `{columns[1]}`")
    if not any(steps):
        raise CurveError(f"{path}: no row with a step above 0")
    return curve(steps, losses, warmup)


def _csv_lines(path: Path, text: str, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(line number, step, loss) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip().lower() for name in next(reader)]
        wanted = [name.strip().lower() for name in columns]
        for column in wanted:
            if header.count(column) != 1:
                what = f"one column `{column}` is needed, and commas between columns"
                raise CurveError(f"{path}:1: {what}; the header has: {_shown(header)}")
        step, loss = header.index(wanted[0]), header.index(wanted[1])
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(step, loss):
                raise CurveError(f"{path}:{reader.line_num}: the row has {len(row)} of {len(header)} columns")
            if row[loss].strip() or columns == STEP_AND_LOSS:
                yield reader.line_num, row[step], row[loss]
    except csv.Error as error:
        raise CurveError(f"{path}:{reader.line_num}: {error}") from None


def _json_lines(path: Path, text: str, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(line number, step, loss) of each line."""
    step, loss = columns
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise CurveError(f"{path}:{number}: not a line of JSON") from None
        if not isinstance(record, dict):
            raise CurveError(f"{path}:{number}: an object with `{step}` and `{loss}` is needed")
        if step in record and loss not in record and columns != STEP_AND_LOSS:
            continue
        if step not in record or loss not in record:
            what = f"an object with `{step}` and `{loss}` is needed"
            raise CurveError(f"{path}:{number}: {what}; it has: {_shown(list(record))}")
        yield number, record[step], record[loss]


def _shown(names: list[str]) -> str:
    """The names found where others were looked for, and how to choose among them."""
    return f"{', '.join(names)[:SHOWN]!a} (--columns STEP,LOSS says which two to read)"


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
