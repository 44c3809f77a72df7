"""Starts Ray for a sweep and ends it again.

A local sweep starts a Ray of its own on 127.0.0.1, with a token made for it, without dashboard or usage statistics.
Its files lie in a short folder (paths of sockets must stay under 108 bytes) that only this user can open and that is
removed afterwards. RAY_ADDRESS names a cluster to use instead, which is left as it is.

Import this module before anything else of Ray: Ray reads its environment variables when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeps import cluster
from zslx.locking import locked

CLUSTER = cluster.address()
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # else SIGTERM prints a C++ stack
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will change a default
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt here, not a quiet end
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
_LOCAL_ENVIRONMENT = {
    # Ray's switch for machines that are no cluster: every process binds to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_local_fs_capacity_threshold": "1.0",
    # No workers before there is work: a sweep would wait forever for one that dies before it has registered.
    "RAY_prestart_worker_first_driver": "0",
}
os.environ.update(_ENVIRONMENT if CLUSTER else _ENVIRONMENT | _LOCAL_ENVIRONMENT)
if not CLUSTER:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray as ray  # noqa: E402 (others import it from here)
import ray._private.utils  # noqa: E402

OBJECT_STORE = 100 * 2**20  # bytes: trials exchange nothing through it
START_LIMIT = 120.0  # seconds for one attempt to start Ray; Ray itself gives up after about 30 where it notices
GRACE = 3.0  # seconds that Python gets to act on a signal before the process is ended without it


@contextlib.contextmanager
def started(results: Path, cpus: int, gpu: bool) -> Iterator[Path]:
    """Ray is running inside this context; yields the folder for Tune's own state. Both are gone afterwards.

    `cpus` are the cores that trials may use at a time; `gpu` says whether they may use the machine's GPUs. A cluster
    knows both by itself.
    """
    remove_stale()
    home = Path(tempfile.mkdtemp(prefix=f"zslx-{os.getpid()}-", dir=base()))  # mode 0700
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    outside = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(home)  # for the workers: what they leave is removed with the folder
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if CLUSTER:
        options |= {"address": CLUSTER}
    else:
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "num_gpus": None if gpu else 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(home / "ray"),  # Ray opens this one to everybody; the folder around it is ours alone
        }
    try:
        start(home, **options)
        with shared_state(results / ".tune") if CLUSTER else contextlib.nullcontext(home / "tune") as state:
            yield state
    finally:
        with uninterrupted():
            ray.shutdown()
            os.environ.pop("TMPDIR") if outside is None else os.environ.update(TMPDIR=outside)
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def shared_state(root: Path) -> Iterator[Path]:
    """A folder for Tune's state that every node of a cluster sees, removed afterwards; those of sweeps that were killed
    are removed now. A sweep that is alive holds the lock of its own, on whichever node it runs."""
    with contextlib.ExitStack() as held:
        with locked(root / ".lock"):
            for left in root.glob("sweep-*"):
                with contextlib.suppress(ValueError, OSError), locked(left / ".lock", refuse="in use"):
                    shutil.rmtree(left, ignore_errors=True)
            state = Path(tempfile.mkdtemp(prefix="sweep-", dir=root))
            held.enter_context(locked(state / ".lock"))
        try:
            yield state
        finally:
            with uninterrupted():
                shutil.rmtree(state, ignore_errors=True)


def start(home: Path, **options: Any) -> None:
    """Call ray.init, twice if need be, since one of the processes that it starts may die.

    Raises ValueError with Ray's reason when the second attempt fails, too.
    """
    for attempt in (1, 2):
        try:
            with watched(home), own_handler():
                ray.init(**options)
            return
        except Exception as error:  # Ray raises plain exceptions here
            with uninterrupted():
                ray.shutdown()
            if attempt == 2:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                what = f"RAY_ADDRESS={CLUSTER}: the cluster did not answer" if CLUSTER else "Ray did not start"
                raise ValueError(f"{what}, twice: {reason[0]}") from error
            print("Ray did not start; trying once more ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def own_handler() -> Iterator[None]:
    """Keep our handler of SIGTERM: ray.init would install one of its own, which exits without a word.

    Ray's must not be there even for a moment. A signal that comes while Ray's C++ code holds the main thread is handled
    when that code returns, by whichever handler is installed then.
    """
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = theirs


@contextlib.contextmanager
def watched(home: Path) -> Iterator[None]:
    """Let a signal, or START_LIMIT seconds, end this process although Ray holds its main thread.

    Python runs signal handlers in the main thread, between two of its own instructions: while that thread waits in
    Ray's C++ code, Ctrl-C does nothing. The system's part of a handler writes to the wake-up socket at once, and a
    second thread reads it. Ray's processes end with this one.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(START_LIMIT)
    over = threading.Event()

    def watch() -> None:
        try:
            number = int.from_bytes(reader.recv(1))  # 0 at the end of this context
        except TimeoutError:
            number = 0
        if over.wait(GRACE if number else 0):
            return
        if number:
            print("\nzslx: stopped; the same command goes on where this one was", file=sys.stderr, flush=True)
        else:
            print(f"zslx: error: Ray did not start within {START_LIMIT:g} s", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        os._exit(128 + number if number else 2)

    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore further signals: a second Ctrl-C must not leave Ray half shut down."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def base() -> Path:
    """Where the temporary folders of sweeps lie: RAY_TMPDIR, else /tmp, whose path is short."""
    return Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()))


def remove_stale() -> None:
    """Remove the temporary folders of sweeps whose process was killed."""
    for folder in base().glob("zslx-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and folder.is_dir() and folder.stat().st_uid == os.getuid():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except PermissionError:
                continue
