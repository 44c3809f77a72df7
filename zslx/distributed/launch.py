"""Ranks as processes of this machine, without torchrun.

The ranks find each other through a file that only this user can read, and talk over the loopback interface: no port is
open to other machines. (torchrun's rendezvous listens on all interfaces.) This process computes nothing: when a rank
is killed, it ends the others, which may wait for the lost one in a collective for ever.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from zslx.distributed.group import STORE

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
GRACE = 10.0  # seconds to end in, once another rank has ended badly


def launch(count: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work(*arguments)` in `count` new processes, the ranks of one group; what rank 0 returns.

    `work` is a function of a module. What rank 0 raises is raised here. ConnectionError where a rank was killed.
    """
    with tempfile.TemporaryDirectory(prefix="zslx-ranks-") as folder:
        context = mp.start_processes(_rank, (count, folder, work, arguments), count, join=False, start_method="spawn")
        try:
            while not context.join(grace_period=GRACE):
                pass
        except mp.ProcessExitedException as error:
            why = f"was killed ({error.signal_name or error.exit_code})"
            raise lost(error.error_index, count, why) from None
        except mp.ProcessRaisedException as error:
            outcome = _outcome(folder)
            # A rank that fails takes the connection from rank 0, whose own error then says no more than that.
            echo = error.error_index and isinstance(outcome, ConnectionError)
            if isinstance(outcome, Exception) and not echo:
                outcome.add_note(str(error).strip())
                raise outcome from None
            raise lost(error.error_index, count, f"ended ({str(error).strip().splitlines()[-1]})") from error
        except BaseException:
            for process in context.processes:
                process.terminate()
            for process in context.processes:
                process.join(GRACE)
            raise
        return _outcome(folder)


def _outcome(folder: str) -> Any:
    """What rank 0 returned or raised; None where it came to neither."""
    path = Path(folder) / "outcome"
    return pickle.loads(path.read_bytes()) if path.exists() else None


def lost(rank: int, count: int, why: str) -> ConnectionError:
    """The error that tells of a rank that is gone."""
    return ConnectionError(f"rank {rank} of {count} {why}; the same command goes on from the last checkpoint")


def _rank(rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    store = str(Path(folder) / "store")
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), STORE: store}
    # What ends a rank whose parent was killed; a command in the background of a script has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(LOOPBACK | own | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count)))
    try:
        outcome = work(*arguments)
    except Exception as error:
        if not rank:
            _keep(error, folder)
        raise  # the others end, whatever they wait for
    if not rank:
        _keep(outcome, folder)


def _keep(outcome: Any, folder: str) -> None:
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    except Exception:  # of an exception with arguments of its own
        if not isinstance(outcome, Exception):
            raise
        data = pickle.dumps(RuntimeError(f"{type(outcome).__name__}: {outcome}"))
    part = Path(folder) / "part"
    part.write_bytes(data)
    part.rename(part.with_name("outcome"))
