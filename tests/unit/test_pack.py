"""Packs: each run as by itself, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zslx.runs import checkpoints
from zslx.runs.json_files import read_json, read_lines
from zslx.runs.records import read_run
from zslx.testing.subject import WATCHED, Outcome, plain, trained
from zslx.training import stacked_probe
from zslx.training.loop import TrainingRun
from zslx.training.pack import train_pack

pytestmark = pytest.mark.usefixtures("cache")

PRECISE = {"train.dtype": "float64", "train.steps": 20} | WATCHED
SEEDS = (0, 1, 2)


def configs(values: dict, seeds=SEEDS) -> list:
    return [plain(PRECISE | values | {"train.seed": seed}) for seed in seeds]


def packed(values: dict, folder: Path, seeds=SEEDS, **options) -> list[Path]:
    outs = [folder / str(seed) for seed in seeds]
    found = train_pack(configs(values, seeds), outs, **options)
    assert [f["status"] if isinstance(f, dict) else f for f in found] == ["finished"] * len(seeds)
    return outs


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train.dtype": "float32"},
        {"intervention": "focal+ema"},
        {"intervention": "confidence_penalty"},  # logits
        {"intervention": "mile", "model.tied": False, "model.bias": True},  # entropy
        {"intervention": "length_warmup+temperature+muon"},
        {"intervention": "pcgrad"},  # each run for itself
        {"model.positions": "learned", "model.norm": "layernorm", "model.norm_gain": True},
        {"data.batch_size": 1, "data.seq_len": 1},
    ],
)
def test_packed_equals_alone(values: dict, tmp_path: Path):
    close = 1e-4 if values.get("train.dtype") == "float32" else 1e-9
    for config, out in zip(configs(values), packed(values, tmp_path / "pack"), strict=True):
        alone = trained(config, tmp_path / f"alone-{config.train.seed}")
        together = Outcome.read(out)
        assert together.distance(alone) < close
        mine, own = read_run(out), read_run(alone.folder)
        assert mine.steps.keys() == own.steps.keys()
        for key in own.steps:
            np.testing.assert_allclose(mine.steps[key], own.steps[key], rtol=close, atol=close)
        assert [p["step"] for p in mine.probes] == [p["step"] for p in own.probes]
        assert_alike(mine.probes, own.probes, close)
        assert mine.manifest["identity"] != own.manifest["identity"]
        assert mine.manifest["ingredients"].pop("packed") is True
        assert mine.manifest["ingredients"] == own.manifest["ingredients"]


@pytest.mark.parametrize(
    "values",
    [
        {"instruments.token_samples": 9, "data.heldout_sequences": 5},  # two tokens a sequence, an odd last part
        {"instruments.token_samples": 32, "instruments.gradient_sequences": 3, "model.tied": False},  # all
        {
            "instruments.token_samples": 256,
            "data.heldout_sequences": 8,
            "data.seq_len": 36,
            "train.steps": 1,
        },  # mean form
        # No bias, and no sequences of one token: gradients that are zero but for rounding count in a mean of c_j.
        {"model.norm": "layernorm", "model.norm_gain": True, "model.positions": "learned"},
        {"data.batch_size": 1, "data.seq_len": 2, "data.heldout_sequences": 2},
        {"instruments.token_samples": 0, "intervention": "ema+token_alignment"},
    ],
)
def test_probes_of_a_pack_are_those_of_its_runs(values: dict, tmp_path: Path):
    more = {"train.steps": 4, "instruments.probes": True, "instruments.gradient_positions": True}
    for config, out in zip(configs(more | values), packed(more | values, tmp_path / "pack"), strict=True):
        mine = read_run(out).probes
        own = read_run(trained(config, tmp_path / f"alone-{config.train.seed}").folder).probes
        assert [p["step"] for p in mine] == [p["step"] for p in own]
        assert {"grad_sequence", "grad_position"} <= own[-1].keys()
        assert ("grad_token" in own[-1]) == ("first_order" in own[-1]) == (config.instruments.token_samples != 0)
        assert_alike(mine, own, 1e-9)


def test_probes_of_runs_that_measure_over_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In pieces, too: gradients of some runs or sequences at a time."""
    monkeypatch.setattr(stacked_probe, "BYTES", 2 * 8 * 40_000)
    more = PRECISE | {"train.steps": 3, "instruments.probes": True}
    chosen = [plain(more | {"train.seed": n, "instruments.token_samples": 4 * n}) for n in (0, 1, 2)]
    outs = [tmp_path / str(i) for i in range(3)]
    assert [m["status"] for m in train_pack(chosen, outs)] == ["finished"] * 3
    for config, out in zip(chosen, outs, strict=True):
        own = read_run(trained(config, tmp_path / f"alone-{out.name}").folder).probes
        assert_alike(read_run(out).probes, own, 1e-9)


def assert_alike(mine: object, own: object, close: float) -> None:
    """Records of the same keys, and numbers that differ by rounding."""
    if isinstance(own, dict):
        assert isinstance(mine, dict) and mine.keys() == own.keys()
        for key in own:
            assert_alike(mine[key], own[key], close)
    elif isinstance(own, list):
        assert isinstance(mine, list) and len(mine) == len(own)
        for a, b in zip(mine, own, strict=True):
            assert_alike(a, b, close)
    elif isinstance(own, float):
        assert mine == pytest.approx(own, rel=close, abs=close)
    else:
        assert mine == own


def test_arms_of_one_shape_share_a_pack(tmp_path: Path):
    """The baseline, a token weighting, a schedule at another rate, and surgery, which makes its gradient for itself."""
    arms = [{}, {"intervention": "focal"}, {"intervention": "cosine", "optim.lr": 1e-2}, {"intervention": "pcgrad"}]
    chosen = [plain(PRECISE | values) for values in arms]
    outs = [tmp_path / str(i) for i in range(len(arms))]
    assert [m["status"] for m in train_pack(chosen, outs)] == ["finished"] * len(arms)
    for config, out in zip(chosen, outs, strict=True):
        assert Outcome.read(out).distance(trained(config, tmp_path / f"alone-{out.name}")) < 1e-9


def test_a_run_that_diverges_leaves_the_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = packed({}, tmp_path / "whole")
    true = TrainingRun.rates

    def poisoned(self, step):
        if self.config.train.seed == 1 and step == 5:
            self.model.embedding.weight.data.fill_(float("nan"))
        return true(self, step)

    monkeypatch.setattr(TrainingRun, "rates", poisoned)
    outs = [tmp_path / "poisoned" / str(seed) for seed in SEEDS]
    found = train_pack(configs({}), outs)
    assert [m["status"] for m in found] == ["finished", "diverged", "finished"]
    assert read_lines(outs[1] / "steps.jsonl")[-1] == {
        "step": 6,
        "tokens": 5 * 32,
        "loss": None,
        "diverged": "the loss is nan at step 6",
    }
    for i in (0, 2):
        assert Outcome.read(whole[i]).difference(Outcome.read(outs[i])) is None


def test_a_plugin_that_raises_ends_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from zslx.intervention.composed import InterventionError
    from zslx.intervention.registry import load_class

    cls = load_class("focal")
    true = cls.token_weights

    def broken(self, run, view, state):
        if run.config.train.seed == 1 and run.step == 5:
            raise RuntimeError("no more")
        return true(self, run, view, state)

    whole = packed({"intervention": "focal"}, tmp_path / "whole")
    monkeypatch.setattr(cls, "token_weights", broken)
    outs = [tmp_path / "broken" / str(seed) for seed in SEEDS]
    found = train_pack(configs({"intervention": "focal"}), outs)
    assert isinstance(found[1], InterventionError) and "no more" in str(found[1])
    assert read_json(outs[1] / "manifest.json")["status"] == "failed"
    for i in (0, 2):
        assert Outcome.read(whole[i]).difference(Outcome.read(outs[i])) is None


def test_a_killed_pack_goes_on(tmp_path: Path):
    """Also where its runs had come to different steps."""
    values = {"intervention": "infobatch+random+ema", "run.resume_seconds": 0}
    whole = packed(values, tmp_path / "whole")
    steps = iter(range(10**6))

    def stop() -> None:
        if next(steps) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(values, tmp_path / "killed", progress=stop)
    newest = tmp_path / "killed/1/resume"
    (newest / f"{checkpoints.steps(newest)[-1]:09d}/complete.json").unlink()  # this run falls back by a step
    for before, after in zip(whole, packed(values, tmp_path / "killed"), strict=True):
        assert Outcome.read(before).difference(Outcome.read(after)) is None


def test_a_pack_that_is_paused_goes_on_with_some_of_its_runs(tmp_path: Path):
    """The others stay where they are; the numbers of those that go on are those of the pack in one go."""
    values = {"intervention": "infobatch+random+ema"}
    whole = packed(values, tmp_path / "whole")
    outs = [tmp_path / "paused" / str(seed) for seed in SEEDS]
    found = train_pack(configs(values | {"run.until": 3}), outs)
    assert [(f["status"], f["totals"]["steps"]) for f in found] == [("paused", 3)] * len(SEEDS)
    packed(values, tmp_path / "paused", seeds=(SEEDS[0], SEEDS[2]))
    for i in (0, 2):
        assert Outcome.read(whole[i]).difference(Outcome.read(outs[i])) is None
    assert read_json(outs[1] / "manifest.json")["status"] == "paused"


def test_a_pack_of_which_some_are_done(tmp_path: Path):
    packed({}, tmp_path, seeds=(1,))
    first = Outcome.read(tmp_path / "1")
    packed({}, tmp_path)
    assert Outcome.read(tmp_path / "1").difference(first) is None
    assert Outcome.read(tmp_path / "0").distance(trained(configs({})[0], tmp_path / "alone")) < 1e-9


def test_runs_of_other_shapes_are_refused(tmp_path: Path):
    one, other = plain({}), plain({"data.seq_len": 4})
    with pytest.raises(ValueError, match=r"a pack needs runs of the same data.seq_len, got 8 and 4"):
        train_pack([one, other], [tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())
