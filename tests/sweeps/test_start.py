"""Starting Ray: a second attempt, a limit on each, signals that always work, and files that only we can open."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zslx.places import ROOT

session = pytest.importorskip("sweeps.ray_session")

# ray.init that is stuck in C code, where Python cannot run a signal's handler. The handlers do nothing, so that it does
# not matter whether the signal comes just before that.
STUCK = """
import hashlib, signal, sys
from pathlib import Path
from sweeps import ray_session

def stuck(**options):
    print("stuck", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
ray_session.ray.init = stuck
ray_session.START_LIMIT, ray_session.GRACE = float(sys.argv[2]), 0.2
ray_session.start(Path(sys.argv[1]))
"""


def starts(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[dict]:
    calls: list[dict] = []

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    return calls


def test_a_start_that_fails_once_is_tried_again(monkeypatch, capsys, tmp_path):
    calls = starts(monkeypatch, 1)
    session.start(tmp_path, address="local")
    assert calls == [{"address": "local"}] * 2 and "trying once more" in capsys.readouterr().err


def test_a_start_that_fails_twice_is_one_line(monkeypatch, tmp_path):
    calls = starts(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"^Ray did not start, twice: The current node timed out during startup\.$"):
        session.start(tmp_path, address="local")
    assert len(calls) == 2


def test_what_ray_opens_to_everybody_lies_in_a_folder_of_ours(monkeypatch, tmp_path):
    calls = starts(monkeypatch, 0)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/before")
    with session.started(tmp_path / "results", cpus=1, gpu=False) as state:
        [home] = tmp_path.glob("zslx-*")
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert Path(calls[0]["_temp_dir"]).parent == home == state.parent and os.environ["TMPDIR"] == str(home)
    assert not home.exists() and os.environ["TMPDIR"] == "/before"


def test_the_folder_of_a_killed_sweep_is_removed_by_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"zslx-{pid}-x").mkdir()
    session.remove_stale()
    assert [folder.name for folder in tmp_path.iterdir()] == [f"zslx-{os.getpid()}-x"]


def test_rays_handler_of_sigterm_does_not_replace_ours(monkeypatch, tmp_path):
    def init(**options):
        session.ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
        if options["meanwhile"]:
            signal.raise_signal(signal.SIGTERM)

    def ours(number, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.ray, "init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        for meanwhile in (False, True):
            with pytest.raises(KeyboardInterrupt):
                session.start(tmp_path, meanwhile=meanwhile)
                signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stuck(tmp_path):
    """A function that starts Ray in another process, where it hangs, with a limit in seconds; the process."""
    processes = []

    def begin(limit: float) -> subprocess.Popen[str]:
        home = tmp_path / "home"
        home.mkdir()
        command = [sys.executable, "-c", STUCK, str(home), str(limit)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout and process.stdout.readline() == "stuck\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_that_is_stuck(stuck, tmp_path, number):
    process = stuck(limit=300)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err.strip().startswith("zslx: stopped") and err.count("\n") == 2
    assert not (tmp_path / "home").exists()


@pytest.mark.medium
def test_a_start_that_is_stuck_ends_at_its_limit(stuck):
    process = stuck(limit=0.2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err == "zslx: error: Ray did not start within 0.2 s\n"
