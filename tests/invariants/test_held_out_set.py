"""The held-out tokens are the same for every arm, whatever it trains on: what an arm leaves out, it is charged for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zslx.config.run_config import Config
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.intervention.discovery import discover
from zslx.runs.json_files import read_lines
from zslx.training.loop import TrainingRun
from zslx.training.train import train

DATA = ("mixture", "batch_size", "sequence", "windows", "context")  # the hooks that decide which text a step sees
PARTS = ("heldout_loss", "heldout_by_domain", "heldout_by_frequency")
ONE_DOMAIN = '''
from dataclasses import dataclass
from zslx import Intervention

@dataclass(frozen=True)
class OneDomain(Intervention):
    """Trains on the text of the first domain alone."""
    name = "one_domain"

    def mixture(self, run, state):
        return [1.0] + [0.0] * (len(run.domains) - 1)
'''


def data_methods() -> list[str]:
    """The shipped interventions that choose text, but for those that a reference model must score it for."""
    own = [n for n, [s, *_] in discover().items() if (s.module or "").startswith("interventions.")]
    classes = {n: registry.load_class(n) for n in own if n != "placebo"}
    return [
        n
        for n, cls in classes.items()
        if any(getattr(cls, hook) is not getattr(Intervention, hook) for hook in DATA)
        and not any("reference" in need for need in cls.needs)
        and not cls.status.startswith("absent")
    ]


def probes(config: Config, folder: Path) -> list[dict[str, Any]]:
    train(config, folder)
    return read_lines(folder / "probes.jsonl")


@pytest.fixture
def two_languages(tmp_path: Path) -> Path:
    """Two domains that share no word."""
    draws = np.random.default_rng(0)
    for domain, letters in (("east", "abcdef"), ("west", "uvwxyz")):
        words = ["".join(draws.choice(list(letters), 4)) for _ in range(12)]
        (tmp_path / "text" / domain).mkdir(parents=True)
        for i in range(8):
            text = " ".join(draws.choice(words, 400))
            (tmp_path / "text" / domain / f"{i}.txt").write_text(text)
    return tmp_path / "text"


def test_an_arm_that_sees_one_domain_is_charged_for_the_other(
    two_languages: Path, tiny: Callable[..., Config], plugins: Path, tmp_path: Path
) -> None:
    (plugins / "one_domain.py").write_text(ONE_DOMAIN)
    values = {"data.path": str(two_languages), "data.heldout_sequences": 8, "train.steps": 64, "optim.lr": 0.01}
    values |= {"instruments.probes": True, "instruments.heldout_points": 10}
    both = probes(tiny(**values), tmp_path / "both")
    one = probes(tiny(**values, intervention="one_domain"), tmp_path / "one")
    sets = [
        TrainingRun(tiny(**values, **arm), tmp_path / f"run-{i}").instruments.heldout
        for i, arm in enumerate(({}, {"intervention": "one_domain"}))
    ]
    assert torch.equal(sets[0].batch.tokens, sets[1].batch.tokens)
    assert torch.equal(sets[0].batch.targets, sets[1].batch.targets)
    assert sets[0].batch.domains.bincount().tolist() == [4, 4]
    assert all(both[0][key] == one[0][key] for key in PARTS)  # before training: the same weights, the same tokens
    assert both[-1]["dtt"]["n"] == one[-1]["dtt"]["n"] == sets[0].batch.tokens.numel()
    before, trained, narrow = (line["heldout_by_domain"] for line in (both[0], both[-1], one[-1]))
    assert narrow["east"] < before["east"] - 1
    assert trained["west"] < before["west"] - 1
    assert narrow["west"] > trained["west"] + 1 and narrow["west"] > narrow["east"] + 1
    assert one[-1]["heldout_loss"] == pytest.approx((narrow["east"] + narrow["west"]) / 2, rel=1e-12)
    # Its last steps gain more on the domain that they see, and less on the other one, than the baseline's.
    changes = [line["dtt"]["by_domain"] for line in (both[-1], one[-1])]
    assert changes[0]["names"] == changes[1]["names"] == ["east", "west"]
    assert changes[1]["shift"][0] < changes[1]["shift"][1] and changes[0]["shift"][1] < changes[1]["shift"][1]


@pytest.mark.medium
@pytest.mark.parametrize("name", data_methods())
def test_methods_that_choose_text_are_measured_on_the_baselines_tokens(
    name: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    values = {"train.steps": 4, "instruments.probes": True, "instruments.heldout_points": 5}
    base, arm = probes(tiny(**values), tmp_path / "base"), probes(tiny(**values, intervention=name), tmp_path / "arm")
    # Before training the weights are the same, and so to the last bit are the losses of the same tokens.
    assert [base[0][key] for key in PARTS] == [arm[0][key] for key in PARTS]
    counts = [{line["dt1_heldout"]["n"] for line in lines if "dt1_heldout" in line} for lines in (base, arm)]
    assert counts[0] == counts[1] == {4 * 8}
    for key in PARTS[1:]:
        assert {line[key].keys() == base[0][key].keys() for line in arm} == {True}
