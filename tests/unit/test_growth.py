"""Models that grow: growth leaves the function as it is, and what is not in use costs nothing and does not move."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from zslx import Intervention, RunView, load_intervention
from zslx.config.groups import ModelConfig
from zslx.intervention.composed import InterventionError
from zslx.intervention.registry import load_spec
from zslx.model.transformer import Transformer
from zslx.probing.probe import ProbeSettings, RunProbe
from zslx.runs import checkpoints
from zslx.runs.load import load_run_model
from zslx.runs.records import read_run
from zslx.testing.subject import WATCHED, Outcome, plain, trained
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun
from zslx.training.pack import train_pack

pytestmark = pytest.mark.usefixtures("cache")

LAYERS = 3
# Layers 1, 2 and 3 come into use at steps 1, 4 and 7.
GROWING = {"intervention": "depth_warmup", "depth_warmup.start": 0.34, "depth_warmup.duration": 0.5,
           "model.n_layers": LAYERS, "train.steps": 12, "train.dtype": "float64"}  # fmt: skip
DEPTHS = [1] * 3 + [2] * 3 + [3] * 6
ODD = [{}, {"tied": False, "bias": True, "norm": "layernorm", "norm_gain": True}, {"positions": "learned"},
       {"gated_mlp": False, "init": "normal"}]  # fmt: skip

BOTH = ("grad_sequence", "grad_token")  # measured by runs and probes


def model(**options) -> tuple[Transformer, torch.Tensor]:
    config = ModelConfig(d_model=8, n_layers=LAYERS, n_heads=2, vocab_size=13, max_positions=9, **options)
    tokens = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(1))
    return Transformer(config, torch.Generator().manual_seed(0)).double(), tokens


def layer_of(name: str) -> int:
    """The layer of a parameter; −1 outside the layers."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


@pytest.mark.parametrize("options", ODD)
def test_growth_leaves_the_function_as_it_is_and_layers_to_come_take_no_part(options: dict):
    grown, tokens = model(**options)
    whole, _ = model(**options)
    grown.begin_with(1)
    logits = grown(tokens)
    for depth in (2, 3):
        grown.grow(depth)
        assert torch.equal(grown(tokens), logits)
    assert not torch.equal(whole(tokens), logits)
    drawn = dict(whole.named_parameters())
    for name, p in grown.named_parameters():
        silent = layer_of(name) >= 1 and ("attention.out" in name or "mlp.down" in name)
        assert torch.equal(p, torch.zeros_like(p) if silent else drawn[name]), name
    grown.depth = 1
    with torch.no_grad():
        for name, p in grown.named_parameters():
            if layer_of(name) >= 1:
                p.fill_(math.nan)
    assert torch.equal(grown(tokens), logits)


def test_a_layer_that_moved_before_its_time_is_named():
    grown, _ = model()
    grown.begin_with(1)
    with torch.no_grad():
        grown.get_parameter("blocks.1.mlp.down.weight").add_(1e-9)
    with pytest.raises(ValueError, match="a layer from 1 to 1 has changed before it came into use"):
        grown.grow(2)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that grows, with all instruments."""
    everything = WATCHED | {"instruments.probes": True, "run.resume_seconds": 0}
    return trained(plain(GROWING | everything), tmp_path_factory.mktemp("runs") / "run")


def test_layers_to_come_do_not_move_and_have_no_moments(run: Outcome):
    assert read_run(run.folder).steps["depth"].tolist() == DEPTHS
    kept = run.folder / checkpoints.CHECKPOINTS
    first = checkpoints.load(kept, 1)["model"]
    assert checkpoints.steps(kept) == [1, 2, 4, 8, 12]
    for step in checkpoints.steps(kept):
        state = checkpoints.load(kept, step)
        assert state["depth"] == DEPTHS[step - 1]
        for name, weights in state["model"].items():
            if step > 1:
                assert torch.equal(weights, first[name]) is (layer_of(name) >= state["depth"]), (step, name)


def test_moments_and_clipping_are_of_the_layers_in_use(run: Outcome, tmp_path: Path):
    """Up to the first growth a run is the run of a model that has no other layers."""
    config = plain(GROWING | {"train.steps": 4, "depth_warmup.duration": 1.0, "optim.clip": 0.1})
    grown = TrainingRun(config, tmp_path / "grown")
    small = TrainingRun(plain({"train.steps": 4, "train.dtype": "float64", "optim.clip": 0.1}), tmp_path / "small")
    weights = {name: p for name, p in grown.model.named_parameters() if layer_of(name) < 1}
    with torch.no_grad():
        for name, p in small.model.named_parameters():
            p.copy_(weights[name])
    for one in (grown, small):
        with one.records:
            for step in (1, 2):
                one.step(step, Clock(one.records))
    assert grown.model.depth == 1
    for name, p in small.model.named_parameters():
        assert torch.equal(p, weights[name])
    state = grown.optimizers[0].state
    names = {id(p): name for name, p in grown.model.named_parameters()}
    assert {names[id(p)] for p, kept in state.items() if kept} == weights.keys()


def test_losses_do_not_change_where_a_run_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the same weights, trained up to there, with the layers of before and of after."""
    true, seen = Transformer.grow, []
    tokens = torch.randint(300, (4, 8), generator=torch.Generator().manual_seed(0))

    def watched(self: Transformer, depth: int) -> None:
        with torch.no_grad():
            before = self(tokens)
            true(self, depth)
            seen.append((depth, torch.equal(before, self(tokens))))

    monkeypatch.setattr(Transformer, "grow", watched)
    trained(plain(GROWING), tmp_path)
    assert seen == [(depth, True) for depth in DEPTHS]


@pytest.mark.parametrize("spec", ["depth_warmup", pytest.param("depth_warmup+schedule_free", marks=pytest.mark.medium)])
def test_resumes_across_growth(spec: str, tmp_path: Path):
    config = plain(GROWING | {"intervention": spec, "run.resume_seconds": 0})
    whole, resumed = trained(config, tmp_path / "whole"), trained(config, tmp_path / "resumed", stops=(3, 5, 8))
    assert whole.difference(resumed) is None
    assert whole.state["depth"] == LAYERS


def test_a_probe_measures_the_layers_of_its_checkpoint(run: Outcome):
    own = {line["step"]: line for line in read_run(run.folder).probes}
    for step, record in RunProbe(run.folder, ProbeSettings(n=8)).measure([2, 4, 8], lambda *_: None).items():
        depth = DEPTHS[step - 1]
        assert load_run_model(run.folder, step).depth == depth
        for found in (record["grad_position"], *(r[key] for r in (record, own[step]) for key in BOTH)):
            assert list(found["by_layer"]) == [str(layer) for layer in range(depth)]
        for key in ("heldout_loss", "decomposition"):
            assert record[key] == own[step][key]
        for key in ("D", "M"):
            assert record["dt1_heldout"][key] == own[step]["dt1_heldout"][key]
            assert record["first_order"][f"true_{key}"] == pytest.approx(record["dt1_heldout"][key])


@pytest.mark.medium
@pytest.mark.parametrize("other", ["muon", "soap", "ademamix", "and_mask", "pcgrad", "token_agreement", "lawa"])
def test_other_methods_work_on_the_layers_in_use(other: str, tmp_path: Path):
    outcome = trained(plain(GROWING | {"intervention": f"depth_warmup+{other}"}), tmp_path)
    assert outcome.status == "finished"  # a layer that moved before its time would have ended it
    assert read_run(outcome.folder).steps["depth"].tolist() == DEPTHS
    states = [checkpoints.load(tmp_path / checkpoints.CHECKPOINTS, step)["model"] for step in (1, 4, 12)]
    for name, first in states[0].items():
        if layer_of(name) == LAYERS - 1 and first.ndim > 1:
            assert torch.equal(first, states[1][name]) and not torch.equal(first, states[2][name])


@pytest.mark.medium
def test_a_pack_takes_growing_runs_and_others(tmp_path: Path):
    """The first run's model is the pack's: it must not decide how many layers the others have."""
    baseline = {key: value for key, value in GROWING.items() if "depth_warmup" not in (key.partition(".")[0], value)}
    values = [GROWING, baseline, GROWING | {"train.seed": 1}]
    configs = [plain(one | WATCHED | {"instruments.probes": True}) for one in values]
    outs = [tmp_path / f"pack-{i}" for i in range(len(configs))]
    assert [found["status"] for found in train_pack(configs, outs)] == ["finished"] * len(outs)
    for i, (config, out) in enumerate(zip(configs, outs, strict=True)):
        alone = trained(config, tmp_path / f"alone-{i}")
        assert Outcome.read(out).distance(alone) < 1e-9
        mine, own = read_run(out), read_run(alone.folder)
        for key in own.steps:
            np.testing.assert_allclose(mine.steps[key], own.steps[key], rtol=1e-9)
        for together, by_itself in zip(mine.probes, own.probes, strict=True):
            assert together["heldout_loss"] == pytest.approx(by_itself["heldout_loss"], rel=1e-9)
            for key in BOTH:
                assert (key in together) is (key in by_itself)
                layers = [found.get(key, {}).get("by_layer", {}) for found in (together, by_itself)]
                assert {k: v["ratio"] for k, v in layers[0].items()} == pytest.approx(
                    {k: v["ratio"] for k, v in layers[1].items()}, rel=1e-6
                )


@pytest.mark.parametrize("spec", ["depth_warmup", "adaptive_depth"])
def test_with_one_layer_nothing_happens(spec: str, tmp_path: Path):
    outcome = trained(plain({"intervention": spec}), tmp_path / "one")
    assert outcome.difference(trained(plain({}), tmp_path / "plain"), weights_only=True) is None


class Shrinking(Intervention):
    """Leaves a layer out again."""

    name = "shrinking"

    def depth(self, run, state):
        return 2 if run.step < 3 else 1


def test_a_model_that_would_shrink_is_refused(tmp_path: Path):
    run = TrainingRun(plain({"model.n_layers": LAYERS}), tmp_path, [Shrinking()])
    message = r"'shrinking', hook depth, step 3: must return a whole number from 2 .* model.n_layers=3, got 1"
    with pytest.raises(InterventionError, match=message):
        run.loop()


def test_two_methods_cannot_both_say_how_deep_the_model_is():
    with pytest.raises(ValueError, match=r"depth_warmup.*adaptive_depth.*depth"):
        load_spec("depth_warmup+adaptive_depth", {})


def depths(name: str, layers: int, steps: int, **settings) -> list[int]:
    method, run = load_intervention(name, **settings), view(layers, steps)
    state = method.init_state(run, torch.Generator())
    found = []
    for run.step in range(steps + 1):
        run.depth = method.depth(run, state)
        found.append(run.depth)
    return found


def view(layers: int, steps: int = 1) -> RunView:
    return RunView(steps=steps, config=plain({"model.n_layers": layers}))


def test_layers_come_in_at_equal_distances():
    assert depths("depth_warmup", 4, 10, start=0.25, duration=0.6) == [1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert depths("depth_warmup", 6, 10, duration=0.3) == [3, 3, 4, 5, *[6] * 7]
    assert depths("depth_warmup", 3, 4, start=1.0) == depths("depth_warmup", 3, 4, duration=0.0) == [3] * 5


def test_layers_come_in_while_interference_is_high_and_stay():
    run = view(4)
    method = load_intervention("adaptive_depth", lowest=0.25, step=math.log(2))
    state = method.init_state(run, torch.Generator())
    found = []
    for n, reading in enumerate([None, 0.99, 0.5, 0.9, 0.99, 0.99, 0.99, 0.1]):
        run.interference = None if reading is None else {"step": n, "D": reading, "M": 1.0}
        run.step, run.depth = n, method.depth(run, state)
        found.append(run.depth)
    # Factors ¼ ½ ¼ ¼ ½ 1 1 ½: the third reading lowers the factor, but no layer goes.
    assert found == [1, 2, 2, 2, 2, 4, 4, 4]
    assert state["taken"] == [6]
