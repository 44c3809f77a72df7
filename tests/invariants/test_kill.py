"""`kill -9` at random moments: what is left is never taken for finished, and the resumed run is the same."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from zslx.runs import checkpoints
from zslx.runs.json_files import read_json
from zslx.testing.subject import WATCHED, Outcome, plain, train_values, trained

STEPS = 40
BUSY = {"intervention": "infobatch+random+ema", "train.steps": STEPS, "run.resume_seconds": 0.05} | WATCHED


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory) -> tuple[Outcome, float]:
    """The run that is never killed, and the seconds that a process of its own takes for it here and now."""
    out = tmp_path_factory.mktemp("timed")
    child = CONTEXT.Process(target=train_values, args=(plain(BUSY).to_dict(), str(out)))
    child.start()
    _wait_for_work(child, out)
    start = time.monotonic()
    child.join()
    seconds = time.monotonic() - start
    return trained(plain(BUSY), tmp_path_factory.mktemp("whole")), seconds


def test_a_file_that_a_killed_run_was_writing_is_removed(cache: Path, tmp_path: Path):
    left = tmp_path / ".manifest.json.1.2.tmp"
    left.write_text("{")
    assert trained(plain(WATCHED), tmp_path).status == "finished"
    assert not left.exists()


@pytest.mark.medium
@pytest.mark.parametrize("round_", range(2))
def test_killed(round_: int, whole: tuple[Outcome, float], tmp_path: Path):
    killed_and_resumed(round_, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(2, 20))
def test_killed_often(round_: int, whole: tuple[Outcome, float], tmp_path: Path):
    killed_and_resumed(round_, whole, tmp_path)


def killed_and_resumed(round_: int, uninterrupted: tuple[Outcome, float], out: Path) -> None:
    """Kill the run again and again, each time a random while after it began to train, and compare the end.

    The while grows with the kills, so that a machine that has become slower since it was timed gets there, too; a run
    that was over before it could be killed (the machine has become faster) proves nothing and is begun again.
    """
    whole, seconds = uninterrupted
    draws, kills = random.Random(round_), 0
    while not finished(out):
        child = CONTEXT.Process(target=train_values, args=(plain(BUSY).to_dict(), str(out)))
        child.start()
        _wait_for_work(child, out)
        child.join(draws.expovariate(4 / (seconds * (1 + kills / 8))))
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert not finished(out) or checkpoints.steps(out / "checkpoints")[-1] == STEPS
        assert kills < 200, "the run does not get on: every start loses what the one before had done"
        if finished(out) and not kills:
            shutil.rmtree(out)
            seconds /= 2
    assert whole.difference(Outcome.read(out)) is None
    assert not list(out.rglob("*.tmp")) and not list(out.glob("checkpoints/.tmp-*"))


def finished(out: Path) -> bool:
    return (out / "manifest.json").exists() and read_json(out / "manifest.json")["status"] == "finished"


def _wait_for_work(child: Any, out: Path) -> None:
    """Until the child has taken the folder's lock (a kill during its imports proves nothing)."""
    manifest = out / "manifest.json"
    before = manifest.stat().st_mtime_ns if manifest.exists() else 0
    while child.is_alive() and (not manifest.exists() or manifest.stat().st_mtime_ns == before):
        time.sleep(0.001)


# One process imports torch; every child is a fork of it, so that a start takes milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["zslx.training.loop", "zslx.testing.subject"])
