"""What a plugin raised: caught, and told on one line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from zslx.printable import one_line


def told(error: BaseException, own: Callable[[FrameType], bool]) -> str:
    """`KeyError: 'x' (mine.py:12)`: the last line of the plugin's own that the error passed through.

    `own` says whether a frame is the plugin's. Where none is, the line that raised is named.
    """
    said = f"{type(error).__name__}: {one_line(str(error))}".removesuffix(": ")
    _, *below = traceback.walk_tb(error.__traceback__)  # the first frame is the caller's
    places = [place for place in below if own(place[0])] or below
    if not places:
        return said
    frame, line = places[-1]
    return f"{said} ({Path(frame.f_code.co_filename).name}:{line})"


def attempt(work: Callable[[], Any]) -> Any:
    """What the work gives, or the exception that it raises."""
    try:
        return work()
    except Exception as error:
        return error
