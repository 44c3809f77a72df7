"""Figures of `zslx probe` from records, complete or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zslx.config.run_config import Config, parse_overrides
from zslx.probing.figures import FIGURES, write_figures
from zslx.probing.series import Series, at, run_label


def record(step: int, size: float, **other: Any) -> dict[str, Any]:
    d = step / (step + 8)
    terms = {"ce": 8 / size, "ee": 7 / size, "sa": 0.5, "conf": -0.1, "n": 100, "bins": "rank"}
    gradient = {"ratio": 0.7, "chance_ratio": 0.72, "n": 16, "histogram": [5, 3, 1, 0]}
    return {
        "step": step,
        "dt1_heldout": {"D": d, "M": 0.1},
        "decomposition": terms | {"half": terms},
        "grad_sequence": gradient,
        **other,
    }


def series(size: float, first_order: bool) -> Series:
    more = {"first_order": {"C_g": 0.1, "C_ug": 0.02, "C_uG": 0.1, "relative_se": 0.1, "error": 0.05}}
    records = [record(step, size, **(more if first_order and step > 1 else {})) for step in (1, 2, 4)]
    return Series(label=f"{size}", parameters=int(1e5 * size), records=records)


@pytest.mark.medium
def test_one_run_without_first_order_and_three_with_a_trend_over_sizes(tmp_path: Path) -> None:
    one = write_figures([series(1.0, False)], tmp_path / "one")
    assert {p.stem for p in one.glob("*.png")} == FIGURES.keys() - {"first_order", "scaling"}
    three = write_figures([series(x, True) for x in (1.0, 2.0, 4.0)], tmp_path / "three")
    assert {p.stem for p in three.glob("*.svg")} == FIGURES.keys()
    drawn = (three / "scaling.svg").read_text()
    assert "α -1.000 (-1.000 to -1.000)" in drawn and "R² 1.000" in drawn
    assert "α +0.000" in drawn and "gap +1.000" in drawn and "slope α, 95 % interval" in drawn
    again = write_figures([series(x, True) for x in (1.0, 2.0, 4.0)], tmp_path / "again")
    assert (again / "plane.svg").read_bytes() == (three / "plane.svg").read_bytes()


def test_numbers_that_are_not_there_are_left_out() -> None:
    one = Series(label="x", parameters=1, records=[{"step": 1, "a": {"b": None}}, {"step": 2, "a": {"b": 3}}])
    steps, values = one.curve("a", "b")
    assert steps.tolist() == [2] and values.tolist() == [3]
    assert at({"a": True}, ("a",)) is None and at({}, ("a", "b")) is None


def test_label_names_size_arm_and_seed() -> None:
    config = parse_overrides(Config(), ["model=0.2M", "intervention=pcgrad", "train.seed=3"])
    assert run_label(Path("f00"), config) == "0.2M pcgrad, seed 3"
    assert run_label(Path("f00"), parse_overrides(config, ["model.n_layers=7"])) == "f00 pcgrad, seed 3"
