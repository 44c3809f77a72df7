"""Ray's start: a first failure is tried again, a second one is one line that names the reason."""

from __future__ import annotations

import pytest

tune = pytest.importorskip("sweeps.tune")


def starts(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[dict]:
    calls: list[dict] = []

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(tune.ray, "init", init)
    monkeypatch.setattr(tune.ray, "shutdown", lambda: None)
    return calls


def test_a_start_that_fails_once_is_tried_again(monkeypatch, capsys):
    calls = starts(monkeypatch, 1)
    tune.start(address="local")
    assert calls == [{"address": "local"}] * 2 and "trying once more" in capsys.readouterr().err


def test_a_start_that_fails_twice_is_one_line(monkeypatch):
    calls = starts(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"^Ray did not start, twice: The current node timed out during startup\.$"):
        tune.start(address="local")
    assert len(calls) == 2
