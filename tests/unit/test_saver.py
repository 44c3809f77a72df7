"""Checkpoints are written beside training, and none of their errors is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from zslx.runs import checkpoints
from zslx.testing.subject import WATCHED, plain, trained
from zslx.training.saver import Saver


def test_writes_are_done_in_order_and_before_the_end():
    done: list[int] = []
    gate = threading.Event()
    with Saver() as saver:
        saver.start(lambda: (gate.wait(5), done.append(1)))
        assert done == []
        gate.set()
        saver.start(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2]


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_an_error_is_raised_by_the_next_write_or_at_the_end():
    saver = Saver()
    saver.start(fail)
    with pytest.raises(OSError, match="No space"):
        saver.start(lambda: None)
    with pytest.raises(OSError, match="No space"), Saver() as last:
        last.start(fail)
    with pytest.raises(KeyError), Saver() as other:
        other.start(fail)
        raise KeyError("the run's own error comes first")


def test_what_is_written_is_of_its_own_step(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However late the write is: here each waits until the next one begins."""
    values = WATCHED | {"run.resume_seconds": 0, "intervention": "ema"}
    prompt = trained(plain(values), tmp_path / "prompt")
    true = checkpoints.write
    late: list[threading.Event] = []

    def slow(*arguments):
        late.append(threading.Event())
        late[-1].wait(0.05)
        return true(*arguments)

    monkeypatch.setattr(checkpoints, "write", slow)
    delayed = trained(plain(values), tmp_path / "delayed")
    assert len(late) > 3 and delayed.difference(prompt) is None
    for kind in (checkpoints.CHECKPOINTS, checkpoints.RESUME):
        at = checkpoints.steps(tmp_path / "prompt" / kind)
        assert checkpoints.steps(tmp_path / "delayed" / kind) == at
        for step in at:
            a, b = ({}, {})
            states = [
                checkpoints.pack(checkpoints.load(tmp_path / name / kind, step), found)
                for name, found in (("prompt", a), ("delayed", b))
            ]
            assert states[0] == states[1] and a.keys() == b.keys()
            assert all((a[key] == b[key]).all() for key in a)
