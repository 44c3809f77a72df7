"""What adaptive methods see of their own training: D, M and domain losses on a sample of the training text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from zslx import Intervention
from zslx.instruments.loss_interference import interference
from zslx.model.losses import token_losses
from zslx.runs.json_files import write_json
from zslx.testing.subject import plain
from zslx.text.loader import control
from zslx.text.token_cache import prepare
from zslx.training.course import Update
from zslx.training.loop import TrainingRun

pytestmark = pytest.mark.usefixtures("cache")


@dataclass(frozen=True)
class Watcher(Intervention):
    """Notes what it sees at each step."""

    name = "watcher"
    needs = frozenset({"interference", "domain_losses", "post_losses"})
    cadence = 2

    def init_state(self, run, generator):
        return {"generator": generator, "seen": []}

    def lr_factor(self, run, state):
        found = run.interference
        state["seen"].append([run.step, found and found["step"], found and found["D"], run.domain_losses])
        return 1.0

    def observe(self, run, stats, state):
        state.setdefault("post", []).append(stats.post_losses is not None)


def run_of(tmp_path: Path, *methods: Intervention) -> TrainingRun:
    config = plain({})
    write_json(tmp_path / "config.json", config.to_dict())
    return TrainingRun(config, tmp_path, list(methods))


def test_what_is_seen_is_the_last_measurement_every_cadence_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = run_of(tmp_path, Watcher())
    weights: dict[int, list[torch.Tensor]] = {}
    true = Update.by_itself

    def update(ask):
        weights[ask.step - 1] = [p.detach().clone() for p in run.model.parameters()]
        found = true(ask)
        weights[ask.step] = [p.detach().clone() for p in run.model.parameters()]
        return found

    monkeypatch.setattr(Update, "by_itself", update)
    run.loop(None)
    state = run.methods.states["watcher"]
    assert [row[:2] for row in state["seen"]] == [[1, None], [2, 1], [3, 2], [4, 2], [5, 4], [6, 4]]
    assert state["post"] == [True, True, False, True, False, True]

    def losses_at(step: int) -> torch.Tensor:
        with torch.no_grad():
            for p, kept in zip(run.model.parameters(), weights[step], strict=True):
                p.copy_(kept)
            return token_losses(run.model, batch)

    config = run.config
    batch = control(
        prepare(config.data.path, config.data.vocab_size),
        sequences=config.data.batch_size,
        seq_len=config.data.seq_len,
    )
    after = losses_at(4)
    assert state["seen"][4][2] == interference(after - losses_at(3))["D"]
    means = [float(after[batch.domains == d].mean()) for d in range(2)]
    assert state["seen"][4][3] == means


def test_the_control_set_is_training_text_and_no_held_out_text(tmp_path: Path):
    run = run_of(tmp_path, Watcher())
    assert run.control is not None
    held_out = run.instruments.heldout.batch.tokens
    assert not any(torch.equal(a, b) for a in run.control.batch.tokens for b in held_out)
    assert set(run.control.batch.domains.tolist()) == {0, 1}


def test_nobody_who_does_not_ask_pays(tmp_path: Path):
    assert run_of(tmp_path).control is None


@dataclass(frozen=True)
class GradientWatcher(Intervention):
    """Notes the gradients' products at each step, with the weights at which they were measured."""

    name = "gradient_watcher"
    needs = frozenset({"domain_gramian"})
    cadence = 3

    def init_state(self, run, generator):
        return {"generator": generator, "seen": [], "before": []}

    def lr_factor(self, run, state):
        state["before"].append([p.detach().clone() for p in run.parameters.values()])
        return 1.0

    def observe(self, run, stats, state):
        state["seen"].append((run.domain_gramian, run.domain_variance))


@dataclass(frozen=True)
class VarianceWatcher(GradientWatcher):
    needs = frozenset({"domain_gramian", "domain_variance"})


@pytest.mark.parametrize("watcher", [GradientWatcher(), VarianceWatcher()])
def test_the_domains_gradients_are_those_of_autograd_before_the_update(tmp_path: Path, watcher: Intervention):
    # An odd number of sequences: domains with 4 and with 3.
    config = plain({"train.dtype": "float64", "data.batch_size": 7})
    write_json(tmp_path / "config.json", config.to_dict())
    run = TrainingRun(config, tmp_path, [watcher])
    assert run.control is not None
    run.loop(None)
    state = run.methods.states["gradient_watcher"]
    batch = run.control.batch
    assert run.methods.run.control_sequences == [4, 3]
    measured = [state["seen"][0][0], *(state["seen"][i][0] for i in (2, 5))]
    assert state["seen"][1][0] is measured[0] and state["seen"][4][0] is measured[1]
    for step, found in zip((0, 2, 5), measured, strict=True):
        with torch.no_grad():
            for p, kept in zip(run.model.parameters(), state["before"][step], strict=True):
                p.copy_(kept)
        rows = []
        for loss in token_losses(run.model, batch).mean(1):
            gradient = torch.autograd.grad(loss, list(run.model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradient]))
        own = [torch.stack([rows[i] for i in torch.where(batch.domains == d)[0]]) for d in range(2)]
        means = torch.stack([g.mean(0) for g in own])
        assert torch.allclose(found, means @ means.T, rtol=1e-10)
        variance = state["seen"][step][1]
        if isinstance(watcher, VarianceWatcher):
            expected = torch.stack([g.var(0).sum() for g in own])
            assert torch.allclose(variance, expected, rtol=1e-10)
        else:
            assert variance is None


def test_the_gradients_of_the_run_are_left_alone(tmp_path: Path):
    run = run_of(tmp_path, GradientWatcher())
    assert run.control is not None
    run.gradient(run.loader.batch(1), 1)
    kept = [p.grad.clone() for p in run.model.parameters()]
    run.methods.run.step = 1
    run.control.before()
    assert run.methods.run.domain_gramian is not None
    assert all(torch.equal(p.grad, g) for p, g in zip(run.model.parameters(), kept, strict=True))
    assert run.control._before is None  # no losses: nobody asked for them


def test_what_was_measured_is_kept_with_the_run(tmp_path: Path):
    run = run_of(tmp_path, VarianceWatcher())
    run.loop(None)
    assert run.control is not None
    kept, view = run.control.state, run.methods.run
    gramian, variance = view.domain_gramian, view.domain_variance
    view.domain_gramian = view.domain_variance = None
    run.resume()
    assert torch.equal(view.domain_gramian, gramian) and torch.equal(view.domain_variance, variance)
    del kept["domain_gramian"], kept["domain_variance"]  # what earlier versions kept
    run.control.state = kept
    assert view.domain_gramian is None
