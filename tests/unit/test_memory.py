"""What saves memory: gradients added up over parts of a batch, and activations computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zslx.config.run_config import override
from zslx.runs.identity import identity
from zslx.testing.subject import BLIND, WATCHED, plain, trained
from zslx.training.pack import train_pack

pytestmark = pytest.mark.usefixtures("cache")

PRECISE = {"train.dtype": "float64", "data.batch_size": 5} | WATCHED


@pytest.mark.parametrize("spec", ["none", "focal", "length_warmup+ema", "truncation+cosine", "skyladder", "muon"])
@pytest.mark.parametrize("parts", [1, 2, 5, 8])
def test_parts_of_a_batch_give_its_gradient(spec: str, parts: int, tmp_path: Path):
    values = PRECISE | {"intervention": spec}
    whole = trained(plain(values), tmp_path / "whole")
    accumulated = trained(plain(values | {"train.micro_batch": parts}), tmp_path / "parts")
    assert accumulated.status == "finished"
    assert accumulated.distance(whole) < 1e-12


@pytest.mark.parametrize("spec", ["pcgrad", "agreement", "poly", "mile", "confidence_penalty", "token_alignment"])
def test_what_needs_the_whole_batch_is_refused_by_name(spec: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"train.micro_batch=2: {spec} needs the whole batch in one pass"):
        trained(plain(BLIND | {"intervention": spec, "train.micro_batch": 2}), tmp_path)


@pytest.mark.parametrize("spec", ["none", "focal", "pcgrad", "pcgrad+focal", "agreement", "token_alignment"])
def test_activations_computed_again_are_the_same(spec: str, tmp_path: Path):
    values = WATCHED | {"intervention": spec, "model.n_layers": 2}
    whole = trained(plain(values), tmp_path / "whole")
    again = trained(plain(values | {"train.checkpointing": True}), tmp_path / "again")
    assert again.difference(whole, weights_only=True) is None


def test_fewer_activations_are_kept():
    """Bytes that autograd keeps of a forward."""
    from zslx.model.transformer import build_model

    kept = []
    for value in (False, True):
        config = override(plain({"model.n_layers": 4}), [("train.checkpointing", value)])
        model, sizes = build_model(config, 308, torch.Generator().manual_seed(0)), []
        ids = torch.zeros(4, 64, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            model(ids).sum()
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_in_a_pack_such_runs_go_by_themselves(tmp_path: Path):
    for key in ("train.micro_batch", "train.checkpointing"):
        configs = [plain(PRECISE | {key: 1, "train.seed": seed}) for seed in range(2)]
        outs = [tmp_path / key / str(seed) for seed in range(2)]
        assert [found["status"] for found in train_pack(configs, outs)] == ["finished"] * 2


def test_a_run_that_does_not_use_them_keeps_its_identity():
    config = plain({})
    assert len({identity(override(config, [(key, 1)])) for key in ("train.micro_batch", "train.checkpointing")}) == 2
    from zslx.runs.identity import ingredients

    assert not {"micro_batch", "checkpointing"} & ingredients(config)["config"]["train"].keys()
