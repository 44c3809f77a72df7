"""`train.compile=true`: the plain step through torch.compile is the eager one to float32 rounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from zslx.runs.records import read_run
from zslx.testing.subject import BLIND, plain, trained
from zslx.training.pack import train_pack

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.medium,
    pytest.mark.filterwarnings("default"),  # torch's own, while it compiles
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


@pytest.mark.parametrize("spec", ["none", "focal", "mile", "pcgrad", "poly"])
def test_a_compiled_run_is_the_eager_one(spec: str, tmp_path: Path):
    """Without a method, with token weights, with logits, through the engine, with an extra loss."""
    losses = []
    for compiled in ("false", "true"):
        config = plain(BLIND | {"intervention": spec, "train.compile": compiled})
        outcome = trained(config, tmp_path / compiled)
        assert outcome.status == "finished"
        losses.append(read_run(tmp_path / compiled).steps["loss"])
    assert np.allclose(losses[0], losses[1], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["focal", "pcgrad"])
def test_a_compiled_pack_is_the_eager_one(spec: str, tmp_path: Path):
    losses = []
    for compiled in ("false", "true"):
        values = BLIND | {"intervention": spec, "train.compile": compiled}
        configs = [plain(values | {"train.seed": seed}) for seed in range(2)]
        outs = [tmp_path / compiled / str(seed) for seed in range(2)]
        assert [found["status"] for found in train_pack(configs, outs)] == ["finished"] * 2
        losses.append([read_run(out).steps["loss"] for out in outs])
    assert np.allclose(losses[0], losses[1], rtol=2e-5)
