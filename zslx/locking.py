"""One process at a time: a file lock that the system gives up when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None, *, refuse: str = "") -> Iterator[None]:
    """Hold the lock on `path` (made if missing, never removed: a removed lock file is two locks).

    If another process holds it, `waiting()` is called once before the wait; with a text as `refuse` there is no wait,
    but a ValueError with that text. The file is never written to, and a symbolic link in its place is refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link, and a lock must be a file: remove it") from None
        raise
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refuse:
                raise ValueError(refuse) from None
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
