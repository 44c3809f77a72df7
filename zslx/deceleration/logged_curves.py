"""Loss curves as other people's tools log them, each under a name.

    CSV, JSON lines, a run folder     curve_file.py; columns `step` and `loss`, or those named
    wandb's export of a chart (CSV)   a column `Step`, and `RUN - METRIC` for each run; its __MIN and __MAX are left out
    trainer_state.json                of Hugging Face's Trainer: the entries of log_history with `step` and `loss`
    TensorBoard event files           a file or a folder of them: the scalar `loss`, or the one named

Whatever is wrong raises a `CurveError` of one line that names the file. Nothing of a file is executed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zslx.deceleration.curve_file import STEP_AND_LOSS, Columns, CurveError, from_rows, read
from zslx.deceleration.loss_curve import Curve

EVENTS = "tfevents"
STATE = "log_history"
BETWEEN = " - "  # of run and metric, in a wandb export
EXTREMES = ("__MIN", "__MAX")
MOST_TAGS = 300  # characters of a list of names in an error


def read_all(path: Path, columns: Columns = STEP_AND_LOSS) -> dict[str, Curve]:
    """The curves in a file, by name; of a file of one curve the name is the file's."""
    if path.is_dir() and any(path.glob(f"*{EVENTS}*")):
        return {path.name: from_rows(path, _events(path, columns), columns)}
    if EVENTS in path.name:
        return {path.parent.name or path.name: from_rows(path, _events(path, columns), columns)}
    if path.suffix == ".json":
        return {path.parent.name or path.stem: from_rows(path, _trainer_state(path, columns), columns)}
    if path.suffix == ".csv" and (exported := _wandb_export(path)):
        return exported
    return {path.name if path.is_dir() else path.stem: read(path, columns)}


def _wandb_export(path: Path) -> dict[str, Curve]:
    """The curves of a chart's export, by run; none where the file is no export."""
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}  # the reader of curve files says what is wrong
    runs = {i: c for i, c in enumerate(header) if i and BETWEEN in c and not c.endswith(EXTREMES)}
    if not runs or header[0].strip().lower() != "step":
        return {}
    found: dict[str, Curve] = {}
    for i, column in runs.items():
        name = column.rpartition(BETWEEN)[0]
        if name in found:
            raise CurveError(f"{path}:1: two columns of the run {name!a}; export one chart at a time")
        found[name] = from_rows(path, ((n, row[0], row[i]) for n, row in rows if len(row) > i and row[i].strip()))
    return found


def _trainer_state(path: Path, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(number, step, loss) of each entry of log_history that has both."""
    step, loss = columns
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CurveError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CurveError(f"{path}: no JSON: {error}") from None
    entries = state.get(STATE) if isinstance(state, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CurveError(f"{path}: no {STATE}, a list of objects, as trainer_state.json has it")
    yield from ((n, e[step], e[loss]) for n, e in enumerate(entries, 1) if step in e and loss in e)


def _events(path: Path, columns: Columns) -> Iterator[tuple[int, Any, Any]]:
    """(number, step, value) of one scalar, of the event files in the order of their names."""
    from tensorboardX.proto import event_pb2

    tag, tags = columns[1], set()
    found: list[tuple[int, int, float]] = []
    for file in sorted(path.glob(f"*{EVENTS}*")) if path.is_dir() else [path]:
        for place, record in _records(file):
            try:
                event = event_pb2.Event.FromString(record)
            except Exception:  # the library's own error, of a record that is none
                raise CurveError(f"{file}: byte {place} begins no event") from None
            for value in event.summary.value:
                tags.add(value.tag)
                if value.tag == tag:
                    found.append((len(found) + 1, event.step, _scalar(value)))
    if not found:
        shown = ", ".join(sorted(tags))[:MOST_TAGS] or "none"
        raise CurveError(f"{path}: no scalar {tag!a} (--columns step,TAG names one); there are: {shown!a}")
    yield from sorted(found, key=lambda row: row[1])


def _scalar(value: Any) -> float:
    """The number of a summary: written plainly, or as a tensor of one float."""
    tensor = value.tensor
    if value.WhichOneof("value") != "tensor":
        return float(value.simple_value)
    if tensor.float_val:
        return float(tensor.float_val[0])
    whole = len(tensor.tensor_content) == 4
    return float(np.frombuffer(tensor.tensor_content, "<f4")[0]) if whole else math.nan


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(place, bytes) of each record of a TFRecord file; what a killed writer left at its end is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CurveError(f"{path}: {error.strerror or error}") from None
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if place + 16 + length > len(data):
            return
        yield place, data[place + 12 : place + 12 + length]
        place += 16 + length
