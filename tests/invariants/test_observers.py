"""Instruments never change training; their records survive a resume bit for bit; D and M keep their identities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.config.run_config import Config
from zslx.instruments.during_training import Instruments
from zslx.instruments.loss_interference import interference
from zslx.instruments.measuring_steps import FINAL_POINTS, FINAL_SHARE, heldout_steps, probe_steps, token_steps
from zslx.runs import checkpoints
from zslx.runs.json_files import read_lines
from zslx.training.loop import TrainingRun
from zslx.training.train import train

STEPS = 12
NONE = {"instruments.probes": False, "instruments.gradient_sequences": 0, "instruments.heldout_points": 2}
PROBES = {"instruments.probes": True, "instruments.heldout_points": 100, "instruments.gradient_sequences": 16}
ALL = PROBES | {
    "instruments.heldout_points": 50,
    "instruments.gradient_sequences": 4,
    "instruments.gradient_positions": True,
    "instruments.token_samples": 8,
}
SETS = {
    "the defaults": PROBES,
    "everything": ALL,
    "few points, log2 bins": ALL | {"instruments.heldout_points": 3, "instruments.rank_bins": "log2"},
    "losses only": PROBES | {"instruments.gradient_sequences": 0, "instruments.decomposition": False},
}
ARMS = {
    "none": {},
    "surgery": {"intervention": "pcgrad"},
    "averaged": {"intervention": "ema"},
    "token weights": {"intervention": "focal"},
}


def run(tiny: Callable[..., Config], folder: Path, **values: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """steps.jsonl and the final weights."""
    train(tiny(**{"train.steps": STEPS} | values), folder)
    return (folder / "steps.jsonl").read_text(), checkpoints.load(folder / "checkpoints", STEPS)["model"]


@pytest.mark.parametrize("arm", [pytest.param(a, marks=[] if a == "none" else pytest.mark.medium) for a in ARMS])
def test_instruments_never_change_training(arm: str, tiny: Callable[..., Config], tmp_path: Path) -> None:
    lines, weights = run(tiny, tmp_path / "none", **ARMS[arm], **NONE)
    assert not any("dt1_batch" in line for line in read_lines(tmp_path / "none" / "probes.jsonl"))
    for i, (name, chosen) in enumerate(SETS.items()):
        observed, after = run(tiny, tmp_path / str(i), **ARMS[arm], **chosen)
        probes = read_lines(tmp_path / str(i) / "probes.jsonl")
        assert any("dt1_batch" in line for line in probes), name
        assert observed == lines, name
        assert weights.keys() == after.keys() and all(torch.equal(weights[k], after[k]) for k in weights), name


def test_an_instrument_that_steps_on_training_is_caught(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: one weight moved by one bit's worth at one probe."""
    lines, _ = run(tiny, tmp_path / "none", **NONE)
    own = Instruments.after

    def meddling(self: Instruments, step: int, model: torch.nn.Module, *rest: Any, **more: Any) -> dict[str, Any]:
        if step == 4:
            with torch.no_grad():
                next(model.parameters()).mul_(1 + 1e-6)
        return own(self, step, model, *rest, **more)

    monkeypatch.setattr(Instruments, "after", meddling)
    assert run(tiny, tmp_path / "meddled", **PROBES)[0] != lines


def test_records_are_the_same_after_a_resume(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every step in turn, once before and once after the probe of that step was recorded."""
    values = {"train.steps": STEPS, "run.resume_seconds": 0.0} | ALL
    train(tiny(**values), tmp_path / "whole")
    whole = (tmp_path / "whole" / "probes.jsonl").read_bytes()
    own = TrainingRun.save
    for stop in (1, 3, 5, 8, 11):
        folder = tmp_path / f"stopped-{stop}"

        def stopping(self: TrainingRun, step: int, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt
            own(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "save", stopping)
            with pytest.raises(KeyboardInterrupt):
                train(tiny(**values), folder)
        train(tiny(**values), folder)
        assert (folder / "probes.jsonl").read_bytes() == whole, stop


def test_identities_hold_in_every_record(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """|ΔL| = M (1 − D); ΔL = the difference of recorded held-out losses; CE = EE + SA − Conf = the held-out loss."""
    train(tiny(**{"train.steps": 16} | ALL), tmp_path)
    lines = {line["step"]: line for line in read_lines(tmp_path / "probes.jsonl")}
    probes = [line for line in lines.values() if "dt1_heldout" in line]
    assert [line["step"] for line in probes] == probe_steps(16)
    doubled = 0
    for line in probes:
        step = line["step"]
        pairs = [("dt1_heldout", step - 1)] + ([("dtt", line["dtt"]["from"])] if "dtt" in line else [])
        for key, earlier in pairs:
            x = line[key]
            change = line["heldout_loss"] - lines[earlier]["heldout_loss"]
            assert x["M"] * (1 - x["D"]) == pytest.approx(abs(change), abs=1e-7), key
            assert x["dL"] == pytest.approx(change, abs=1e-7) and 0 <= x["D"] <= 1
        doubled += "dtt" in line
        terms = line["decomposition"]
        assert terms["ee"] + terms["sa"] - terms["conf"] == pytest.approx(line["heldout_loss"], abs=1e-10)
        assert terms["n"] == line["dt1_heldout"]["n"]
        gradients = line["grad_sequence"]
        assert gradients["n"] == 4 and 0 <= gradients["ratio"] <= 1 and 0 < gradients["chance_ratio"] < 1
        assert "grad_position" in line and {"grad_token", "first_order"} & line.keys() == (
            {"grad_token", "first_order"} if step in token_steps(16) else set()
        )
        if effect := line.get("first_order"):
            assert 1 - effect["D"] == pytest.approx(effect["C_g"] * effect["C_uG"] / effect["C_ug"], rel=1e-3)
            # The losses of the update itself are those that dt1 compares, in another pass.
            assert effect["true_D"] == pytest.approx(line["dt1_heldout"]["D"], abs=1e-4)
    assert doubled == len([s for s in probe_steps(16) if s % 2 == 0 and s // 2 in probe_steps(16)])


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=60))
def test_size_of_the_mean_is_m_times_one_minus_d(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    found = interference(x)
    if not any(values):
        assert found["D"] is None and found["M"] == found["dL"] == 0
        return
    assert -1e-12 <= found["D"] <= 1 and found["n"] == len(values)
    assert abs(found["dL"]) == pytest.approx(found["M"] * (1 - found["D"]), rel=1e-9, abs=1e-9 * (1 + found["M"]))


def test_interference_of_toy_values() -> None:
    assert interference(torch.tensor([1.0, -1.0])) == {"D": 1.0, "M": 1.0, "dL": 0.0, "n": 2}
    assert interference(torch.tensor([-2.0, -2.0]))["D"] == 0
    assert interference(torch.tensor([3.0, -1.0]))["D"] == 0.5
    assert interference(torch.zeros(3)) == {"D": None, "M": 0.0, "dL": 0.0, "n": 3}


@given(st.integers(1, 100_000), st.integers(2, 200))
@settings(max_examples=200, deadline=None)
def test_heldout_points(steps: int, points: int) -> None:
    chosen = heldout_steps(steps, points)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] == steps
    for t in probe_steps(steps):
        assert {t, t - 1} <= set(chosen)
        assert 2 * t in probe_steps(steps) or 2 * t > steps or t == steps
    last = [s for s in chosen if s > steps - steps * FINAL_SHARE]
    assert len(last) >= min(FINAL_POINTS, steps * FINAL_SHARE // 1)
    for probes in (True, False):
        least = len(heldout_steps(steps, 2, probes))
        assert len(heldout_steps(steps, points, probes)) == max(min(points, steps + 1), least)
