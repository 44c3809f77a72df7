"""What ends a trial: whether trying again can help, and how a user is told."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any

import torch

from zslx.printable import one_line, printable

LONGEST = 500  # characters of an error's line
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NoSpace(OSError):
    """The results folder takes no more data: every further trial would fail the same way."""


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help: a run is deterministic, but memory, disks and GPUs are not."""
    cause: BaseException = error.__cause__ or error  # what a plugin raises comes wrapped
    if isinstance(cause, OSError):
        return not no_space(cause)
    transient = isinstance(cause, MemoryError | torch.OutOfMemoryError)
    return transient or (isinstance(cause, RuntimeError) and "CUDA" in str(cause))


def described(error: BaseException) -> dict[str, Any]:
    """An exception as plain values: one line, with the place where a bug raised, and the traceback."""
    line = one_line(str(error)) or repr(error)
    if not isinstance(error, ValueError):
        line = f"{type(error).__name__}: {line}"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, ValueError | OSError):
        line += f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    details, cause = "".join(traceback.format_exception(error)), error.__cause__ or error
    return {"status": "failed", "error": printable(line, LONGEST), "details": details, "full": no_space(cause)}


def no_space(error: BaseException) -> bool:
    """Whether the results folder takes no more data; libraries wrap the system's error in their own."""
    return (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error)
