"""TensorBoard event files of a run: every number of its rows, written anew whenever the run goes on.

tensorboardX writes them, which needs neither TensorBoard nor TensorFlow: `tensorboard --logdir RESULTS/tensorboard`.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zslx.tracking.rows import TIME, Row


class EventFiles:
    """Event files in `folder`, which is emptied first: a row is in them once. The tags are the rows' keys."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder), flush_secs=10)
        self.folder, self.first = folder, 0

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows whose steps increase; those that are there are left out."""
        for row in rows:
            if (step := int(row["step"])) < self.first:
                continue
            for key, value in row.items():
                if key not in ("step", TIME):
                    self.writer.add_scalar(key, value, step, walltime=row.get(TIME))
            self.first = step + 1
        self.writer.flush()
        for path in self.folder.glob(f"*.{socket.gethostname()}"):  # the name that tensorboardX gives
            path.rename(path.with_suffix(".zslx"))

    def close(self, summary: Mapping[str, Any] | None = None, *, ok: bool = True) -> None:
        """End the files."""
        self.writer.close()
