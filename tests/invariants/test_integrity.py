"""Records that were cut, changed or lost are never taken for a finished run, and are trained again to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.ledger import is_done
from zslx.runs.integrity import fault, gap
from zslx.runs.json_files import read_json, write_json
from zslx.runs.records import read_run
from zslx.testing.subject import BLIND, plain, trained
from zslx.training.train import train

pytestmark = pytest.mark.usefixtures("cache")
CONFIG = {"train.steps": 12, "instruments.heldout_points": 12}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def without_the_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def without_a_line_in_the_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))


def with_another_number(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"1", b"2"), *lines[3:]]))


def removed(path: Path) -> None:
    path.unlink()


DAMAGE = [cut, without_the_last_line, without_a_line_in_the_middle, with_another_number, removed]


@pytest.mark.parametrize("name", ["steps", "probes"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_are_found_and_trained_again(damage: Callable, name: str, tmp_path: Path):
    config = plain(BLIND | CONFIG)
    whole = trained(config, tmp_path / "run")
    identity = read_json(tmp_path / "run" / "manifest.json")["identity"]
    assert is_done(tmp_path / "run", identity) and fault(read_run(tmp_path / "run")) == ""
    path = tmp_path / "run" / f"{name}.jsonl"
    damage(path)
    assert str(path) in fault(read_run(tmp_path / "run"))
    assert not is_done(tmp_path / "run", identity)
    if damage is with_another_number:
        with pytest.raises(ValueError, match="was changed since the run finished; its numbers cannot be trusted"):
            train(config, tmp_path / "run")
        return
    train(config, tmp_path / "run")
    assert is_done(tmp_path / "run", identity)
    again = trained(config, tmp_path / "run")
    assert whole.difference(again) is None


@pytest.mark.parametrize("damage", [without_the_last_line, without_a_line_in_the_middle, removed])
@pytest.mark.parametrize("name", ["steps", "probes"])
def test_runs_without_checksums_are_checked_step_by_step(damage: Callable, name: str, tmp_path: Path):
    trained(plain(BLIND | CONFIG), tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    del manifest["records"]
    write_json(tmp_path / "manifest.json", manifest)
    assert fault(read_run(tmp_path)) == ""
    damage(tmp_path / f"{name}.jsonl")
    assert "no line for step" in fault(read_run(tmp_path))


def test_a_gap_is_named(tmp_path: Path):
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 4)))
    assert gap(tmp_path, 2, []) == ""
    assert gap(tmp_path, 4, []) == f"{tmp_path / 'steps.jsonl'}: no line for step 3"
    assert gap(tmp_path, 6, []) == f"{tmp_path / 'steps.jsonl'}: no line for step 3 and 2 more"
    assert gap(tmp_path, 1, [0]) == f"{tmp_path / 'probes.jsonl'}: no line for step 0"


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_kept(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(ValueError, match="is a symbolic link"):
        train(plain(BLIND), tmp_path / "run")
    assert precious.read_text() == "kept"
