"""Checkpoints: any state comes back to the last bit, damage is noticed, what is kept and what is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.runs import checkpoints
from zslx.runs.checkpoints import clear, latest, load, pack, prune, save, steps, unpack

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
states = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.dictionaries(st.integers(), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(states)
def test_plain_values_come_back(value):
    tensors: dict = {}
    written = json.loads(json.dumps(pack(value, tensors)))
    assert unpack(written, tensors) == value and not tensors


def test_tensors_generators_and_odd_numbers_come_back(tmp_path: Path):
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = {
        "a": {"b": [torch.arange(6.0).view(2, 3).t(), torch.tensor(2, dtype=torch.int64)], 7: "seven"},
        "empty": torch.zeros(0, 3),
        "half": torch.tensor([math.nan, -0.0, math.inf], dtype=torch.bfloat16),
        "generator": generator,
        "nan": math.nan,
        "__tensor__": "a key like ours",
    }
    save(tmp_path, 5, state)
    found = load(tmp_path, 5)
    assert torch.equal(found["a"]["b"][0], state["a"]["b"][0]) and found["a"][7] == "seven"
    assert found["a"]["b"][1].dtype == torch.int64 and found["empty"].shape == (0, 3)
    assert torch.equal(found["half"].view(torch.int16), state["half"].view(torch.int16))
    assert torch.equal(torch.rand(9, generator=found["generator"]), torch.rand(9, generator=generator))
    assert math.isnan(found["nan"]) and found["__tensor__"] == "a key like ours"


def test_names_of_tensors_never_meet(tmp_path: Path):
    names = ["a/b", "a", "a/b'", 1, "1", "1'"]
    state = {name: torch.tensor(float(i)) for i, name in enumerate(names) if name != "a"}
    state["a"] = {"b": torch.tensor(8.0), "b'": torch.tensor(9.0)}
    save(tmp_path, 1, {"own": state})
    assert load(tmp_path, 1)["own"] == state


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path):
    whole = torch.arange(4.0)
    save(tmp_path, 1, {"a": whole, "b": whole[1:], "c": whole})
    found = load(tmp_path, 1)
    found["a"][1] = 9
    assert found["b"].tolist() == [1, 2, 3] and found["c"].tolist() == [0, 1, 2, 3]


def test_what_cannot_be_kept_is_named(tmp_path: Path):
    with pytest.raises(TypeError, match="/mine/cache: a set cannot be kept in a checkpoint"):
        save(tmp_path, 1, {"mine": {"cache": {1, 2}}})
    with pytest.raises(TypeError, match=r"/mine: the key \(0, 1\) cannot be kept in a checkpoint; allowed are texts"):
        save(tmp_path, 1, {"mine": {(0, 1): 2.0}})
    with pytest.raises(TypeError, match="/mine: a ndarray cannot be kept in a checkpoint; allowed are dict, list"):
        save(tmp_path, 1, {"mine": np.ones(2)})
    assert steps(tmp_path) == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "complete.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over(name: str, damage: str, tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step, {"x": torch.full((50,), float(step)), "step": step})
    path = tmp_path / "000000002" / name
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {"truncated": data[:-9], "flipped": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]}
    path.unlink() if damage == "missing" else path.write_bytes(changed.get(damage, b""))
    found = list(latest(tmp_path))
    if damage == "flipped" and name == "complete.json" and len(found) == 2:
        assert found[0][1]["step"] == 2  # the flip met a space or the step's own digit: the contents are whole
    else:
        assert [step for step, _ in found] == [1]
        with pytest.raises(ValueError, match="000000002"):
            load(tmp_path, 2)


@pytest.mark.parametrize(
    ("complete", "message"),
    [
        ({}, "step is missing"),
        ({"step": 2, "files": [1]}, "files must be an object, not a list"),
        ({"step": 2, "files": {}}, "files.tensors.safetensors is missing"),
    ],
)
def test_a_checkpoint_that_does_not_say_what_it_holds_is_passed_over(complete: dict, message: str, tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step, {"step": step})
    (tmp_path / "000000002" / "complete.json").write_text(json.dumps(complete))
    with pytest.raises(ValueError, match=f"complete.json: {message}"):
        load(tmp_path, 2)
    assert [step for step, _ in latest(tmp_path)] == [1]


def test_a_save_that_is_interrupted_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 4, {"x": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 6, {"x": 2})
    assert steps(tmp_path) == [4] and load(tmp_path, 4) == {"x": 1}


def test_saving_again_replaces(tmp_path: Path):
    save(tmp_path, 4, {"x": 1})
    save(tmp_path, 4, {"x": 2})
    assert load(tmp_path, 4) == {"x": 2}


def test_the_last_two_to_go_on_from_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10):
        save(tmp_path, step, {})
    (tmp_path / ".tmp-000000011-99").mkdir()
    prune(tmp_path)
    assert steps(tmp_path) == [9, 10] and list(tmp_path.glob(".tmp-*"))
    clear(tmp_path)
    assert steps(tmp_path) == [9, 10] and not list(tmp_path.glob(".tmp-*"))


def test_no_pickle(tmp_path: Path):
    folder = save(tmp_path, 1, {"x": torch.ones(2), "y": [1]})
    assert sorted(p.name for p in folder.iterdir()) == ["complete.json", "state.json", "tensors.safetensors"]
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in folder.iterdir())
