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
