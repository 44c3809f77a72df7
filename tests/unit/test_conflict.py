"""The benchmark of conflict by grouping: its numbers on known Gramians, and a whole pass over a tiny run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import conflict
from zslx.config.run_config import Config
from zslx.training.train import train


def test_known_gramians():
    orthogonal = conflict.of_gramian(torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    assert orthogonal["negative"] == 0 and orthogonal["groups"] == 3
    assert orthogonal["cancellation"] == pytest.approx(1 - 14**0.5 / 6) == orthogonal["at_right_angles"]
    opposed = conflict.of_gramian(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert (opposed["groups"], opposed["negative"], opposed["cancellation"]) == (2, 1.0, 1.0)
    assert opposed["mean_cosine"] == pytest.approx(-1)


@pytest.mark.medium
def test_a_run_is_measured_tabled_and_drawn(tiny: Callable[..., Config], tmp_path: Path):
    train(tiny(**{"train.steps": 4}), tmp_path / "run")
    rows = list(conflict.measure(tmp_path / "run"))
    assert {row["grouping"] for row in rows} == set(conflict.GROUPINGS)
    assert {row["step"] for row in rows} == {1, 2, 4}
    assert len(rows) == 3 * conflict.BATCHES * len(conflict.GROUPINGS)
    table = conflict.tables(rows)
    assert all(table.count(f"| {grouping} |") == 1 + (grouping in conflict.BY_TOKEN) for grouping in conflict.GROUPINGS)
    conflict.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
