"""The held-out passes and the two halves of a probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zslx.config.groups import ModelConfig
from zslx.config.run_config import Config
from zslx.instruments.heldout import FREQUENCY_GROUPS, HeldOut
from zslx.instruments.loss_interference import interference
from zslx.instruments.rank_decomposition import Decomposition
from zslx.intervention.base import RunView, StepView
from zslx.intervention.gradient_method import token_frequency
from zslx.model.losses import token_losses
from zslx.model.transformer import Transformer
from zslx.runs.json_files import read_lines
from zslx.text.loader import Batch
from zslx.text.token_frequency import frequency_groups
from zslx.training.train import train


def small(seed: int, chunk: int = 2) -> tuple[Transformer, HeldOut]:
    config = ModelConfig(d_model=8, n_layers=1, n_heads=2, vocab_size=11)
    model = Transformer(config, torch.Generator().manual_seed(seed)).double()
    text = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(9))
    batch = Batch(tokens=text[:, :-1], targets=text[:, 1:], domains=torch.tensor([0, 0, 0, 2, 2]))
    counts = torch.tensor([40, 30, 10, 8, 6, 4, 2, 0, 0, 0, 0])
    return model, HeldOut(batch, ("a", "b", "c"), token_counts=counts, chunk=chunk, dtype="float64")


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    model, held = small(0, chunk)
    terms = Decomposition()
    losses = held.losses(model, decomposition=terms)
    with torch.no_grad():
        whole = token_losses(model, held.batch)
    assert torch.allclose(losses, whole, rtol=1e-13, atol=0)
    assert terms.record()["ce"] == pytest.approx(float(whole.mean()), rel=1e-13)
    assert not losses.requires_grad


def test_other_weights_reach_the_tied_head_too() -> None:
    (model, held), (other, _) = small(0), small(1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = held.losses(model, {name: p.detach() for name, p in other.named_parameters()})
    assert torch.equal(losses, held.losses(other)) and not torch.equal(losses, held.losses(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_record_by_domain() -> None:
    _, held = small(0)
    losses = torch.arange(30, dtype=torch.float64).view(5, 6)
    record = held.record(losses)
    assert record["heldout_loss"] == 14.5
    assert record["heldout_by_domain"] == {"a": float(losses[:3].mean()), "c": float(losses[3:].mean())}


def test_record_by_frequency_of_the_target() -> None:
    """40 of 100 tokens are id 0, whose middle is at 20: group 0; id 1 ends at 70, middle 55: group 2; none in 1."""
    _, held = small(0)
    losses = torch.arange(30, dtype=torch.float64).view(5, 6)
    groups = {"0": held.batch.targets == 0, "2": held.batch.targets == 1, "3": held.batch.targets > 1}
    assert all(bool(at.any()) for at in groups.values())
    record = held.record(losses)
    assert record["heldout_by_frequency"] == {name: float(losses[at].mean()) for name, at in groups.items()}
    whole = sum(float(losses[at].sum()) for at in groups.values()) / 30
    assert whole == pytest.approx(record["heldout_loss"], rel=1e-14)


def test_the_groups_by_frequency_are_those_of_the_gradient_methods() -> None:
    view = StepView(
        tokens=torch.zeros(1, 500), targets=torch.arange(500)[None], losses=torch.zeros(1, 500), domains=torch.zeros(1)
    )
    counts = torch.randint(0, 90, (500,), generator=torch.Generator().manual_seed(3))
    found = token_frequency(RunView(token_counts=counts), view, FREQUENCY_GROUPS)[0]
    assert torch.equal(found, frequency_groups(counts, FREQUENCY_GROUPS))
    shares = torch.zeros(FREQUENCY_GROUPS).index_add(0, found, counts.float()) / counts.sum()
    assert shares.tolist() == pytest.approx([0.25] * FREQUENCY_GROUPS, abs=0.01)
    assert int(counts[found == 0].min()) >= int(counts[found == 3].max())


def test_interference_is_that_of_all_tokens_and_of_the_domains() -> None:
    _, held = small(0)
    changes = torch.arange(30, dtype=torch.float64).view(5, 6) - 14
    found = held.interference(changes)
    by_domain = found.pop("by_domain")
    assert found == interference(changes) and by_domain["names"] == ["a", "c"]
    assert by_domain["within"] == [interference(changes[:3])["D"], interference(changes[3:])["D"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_step_of_no_size_changes_no_loss(dtype: str, tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Losses before and after come from the same arithmetic: with a rate of 0 every change is exactly 0."""
    values = {"optim.lr": 0.0, "train.steps": 4, "train.dtype": dtype, "instruments.probes": True}
    train(tiny(**values, **{"instruments.heldout_points": 5}), tmp_path)
    probes = [line for line in read_lines(tmp_path / "probes.jsonl") if "dt1_batch" in line]
    assert [line["step"] for line in probes] == [1, 2, 3, 4]
    for line in probes:
        assert line["dt1_batch"]["M"] == line["dt1_heldout"]["M"] == 0
        assert line["dt1_batch"]["D"] is line["dt1_heldout"]["D"] is None
        assert "dtt" not in line or line["dtt"]["M"] == 0


def test_an_arm_that_averages_records_what_it_ships(tiny: Callable[..., Config], tmp_path: Path) -> None:
    values = {"intervention": "ema", "train.steps": 4, "instruments.probes": True}
    train(tiny(**values, **{"instruments.heldout_points": 5}), tmp_path)
    for line in read_lines(tmp_path / "probes.jsonl")[2:]:  # the average starts as the weights after step 1
        assert line["heldout_loss"] != line["heldout_loss_trained"]
        assert line["decomposition"]["ce"] == pytest.approx(line["heldout_loss"], rel=1e-6)
