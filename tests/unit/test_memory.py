"""What saves memory: gradients added up over parts of a batch, activations and logits computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zslx.config.run_config import override
from zslx.model.losses import losses_of
from zslx.model.transformer import build_model
from zslx.runs.digest import LATER
from zslx.runs.identity import identity, ingredients
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


@pytest.mark.parametrize("spec", ["none", "focal", "poly", "pcgrad", "agreement", "mile", "token_alignment"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_losses_of_a_few_positions_at_a_time(spec: str, chunk: int, tmp_path: Path):
    """8 positions; with `mile` the logits are there anyway."""
    values = PRECISE | {"intervention": spec}
    whole = trained(plain(values), tmp_path / "whole")
    chunked = trained(plain(values | {"train.loss_chunk": chunk}), tmp_path / "chunked")
    assert chunked.status == "finished"
    assert chunked.distance(whole) < 1e-12


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
@pytest.mark.parametrize("tied", [True, False])
def test_chunked_losses_are_those_of_all_logits(shape: tuple[int, int], tied: bool):
    """Value and gradient of each token's loss, weighted as a method would."""
    config = plain({"train.dtype": "float64", "model.tied": tied})
    ids = torch.randint(308, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(1))
    weights = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for chunk in (0, 2):
        model = build_model(config, 308, torch.Generator().manual_seed(0))
        model.loss_chunk = chunk
        losses = losses_of(model, ids[:, :-1], ids[:, 1:], None)
        (losses * weights).sum().backward()
        found.append([losses.detach(), *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("key", ["train.checkpointing", "train.loss_chunk"])
def test_fewer_numbers_are_kept(key: str):
    """Bytes that autograd keeps of a forward: of four blocks, or of logits over a large vocabulary."""
    layers, rows = (4, 308) if key == "train.checkpointing" else (1, 3000)
    kept = []
    for value in (False, True) if layers > 1 else (0, 4):
        config = override(plain({"model.n_layers": layers}), [(key, value)])
        model, sizes = build_model(config, rows, torch.Generator().manual_seed(0)), []
        ids = torch.zeros(4, 64, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            losses_of(model, ids, ids, None).sum()
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_a_deterministic_run_is_the_same_on_the_cpu(tmp_path: Path):
    values = WATCHED | {"intervention": "pcgrad+ema"}
    usual = trained(plain(values), tmp_path / "usual")
    strict = trained(plain(values | {"train.deterministic": True}), tmp_path / "strict")
    assert strict.difference(usual, weights_only=True) is None
    trained(plain(values | {"train.steps": 1}), tmp_path / "next")
    assert not torch.are_deterministic_algorithms_enabled(), "it does not outlast its run"


def test_in_a_pack_such_runs_go_by_themselves(tmp_path: Path):
    for key in ("train.micro_batch", "train.checkpointing", "train.loss_chunk"):
        configs = [plain(PRECISE | {key: 1, "train.seed": seed}) for seed in range(2)]
        outs = [tmp_path / key / str(seed) for seed in range(2)]
        assert [found["status"] for found in train_pack(configs, outs)] == ["finished"] * 2


def test_a_run_that_does_not_use_them_keeps_its_identity():
    config = plain({})
    used = {identity(override(config, [(f"train.{key}", 1)])) for key in LATER["train"]}
    assert len(used | {identity(config)}) == len(LATER["train"]) + 1
    assert not set(LATER["train"]) & ingredients(config)["config"]["train"].keys()
