"""Reads a records file while another process appends to it: each line once, as soon as it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zslx.runs.json_files import loads


class Follower:
    """The lines of one file, each once. A run that goes on from a checkpoint writes the steps after it again: these
    are left out, since they are the same."""

    def __init__(self, path: Path, last: int = -1):
        self.path, self.last = path, last  # the last step that was given out
        self._place = 0  # bytes read

    def new(self) -> list[dict[str, Any]]:
        """The whole lines after those given out before; none while there is no file. Never raises."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._place:
                    self._place = 0  # cut, to go on from a checkpoint
                file.seek(self._place)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        found = []
        for line in whole.splitlines():
            try:
                values = loads(line)
                step = values["step"]
                if step > self.last:
                    found.append(values)
                    self.last = step
            except (ValueError, KeyError, TypeError):
                self._place = 0  # cut and written on since: from the start again, the next time
                return found
        self._place += len(whole)
        return found
