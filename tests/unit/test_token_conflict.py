"""Methods that act on the conflict of tokens, against their formulas written out in float64; the hooks they use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from zslx import Intervention, RunView, load_intervention
from zslx.config.run_config import Config, override
from zslx.gradients import TokenSums
from zslx.intervention.composed import InterventionError, Methods
from zslx.intervention.registry import load_spec
from zslx.model.losses import token_losses
from zslx.runs import checkpoints
from zslx.runs.json_files import write_json
from zslx.testing.subject import plain, trained
from zslx.training.loop import TrainingRun

LR, DECAY, EPS, STEPS = 0.03, 0.1, 1e-6, 7
SHAPES = {"m": (3, 5), "t": (5, 2), "v": (4,)}


class World:
    """Parameters, and a gradient and sums over tokens for each step; `measured` are the steps with new sums."""

    def __init__(self, measured: tuple[int, ...] = (1, 3, 4)):
        draws = np.random.default_rng(0)
        self.measured = measured
        self.start = {name: draws.normal(size=shape) for name, shape in SHAPES.items()}
        self.gradients = [{n: draws.normal(size=s) * 0.1 for n, s in SHAPES.items()} for _ in range(STEPS)]
        self.absolute = [{n: draws.uniform(0, 1, size=s) for n, s in SHAPES.items()} for _ in range(STEPS)]
        self.signed = [{n: draws.normal(size=s) * 0.1 for n, s in SHAPES.items()} for _ in range(STEPS)]
        pairs = {"optim.lr": LR, "optim.beta1": 0.8, "optim.beta2": 0.9, "optim.eps": EPS, "optim.weight_decay": DECAY}
        config = override(Config(), list(pairs.items()))
        self.parameters = {name: torch.tensor(value, requires_grad=True) for name, value in self.start.items()}
        self.run = RunView(steps=STEPS, config=config, parameters=self.parameters)

    def steps(self):
        """Each step's gradient; the sums of its measurement stand in the run."""
        for t in range(STEPS):
            self.run.step = t + 1
            if t + 1 in self.measured:
                now = [
                    {name: torch.tensor(value) for name, value in kind[t].items()}
                    for kind in (self.gradients, self.signed, self.absolute)
                ]
                counts = {"step": t + 1, "count": 1, "num_tokens": 1}
                self.run.token_sums = TokenSums(**counts, sum=now[0], signed_sum=now[1], abs_sum=now[2])
            yield {name: torch.tensor(value) for name, value in self.gradients[t].items()}

    def mean(self, values: list[np.ndarray], step: int, decay: float) -> np.ndarray | None:
        """What the running mean of the measurements is in `step`: those of the steps before it."""
        past = [values[s - 1] for s in self.measured if s < step]
        weights = np.array([decay ** (len(past) - 1 - k) for k in range(len(past))])
        return np.tensordot(weights / weights.sum(), np.stack(past), 1) if past else None


def filtered(name: str, world: World, **settings) -> list[dict[str, np.ndarray]]:
    """What a method makes of each step's gradient."""
    method = load_intervention(name, **settings)
    state = method.init_state(world.run, torch.Generator().manual_seed(0))
    found = []
    for gradient in world.steps():
        found.append({n: method.filter(world.run, n, g.clone(), state).numpy() for n, g in gradient.items()})
        method.observe(world.run, None, state)
    return found


@pytest.mark.parametrize(("power", "size"), [(1.0, "matched"), (0.4, "matched"), (1.0, "own"), (0.4, "own")])
def test_token_adam(power: float, size: str):
    world = World()
    method = load_intervention("token_adam", power=power, size=size, decay=0.7)
    state = method.init_state(world.run, torch.Generator().manual_seed(0))
    groups = [{"params": [world.parameters[n] for n in "mt"], "weight_decay": DECAY}]
    groups.append({"params": [world.parameters["v"]], "weight_decay": 0.0})
    optimizer = method.optimizer(world.run, groups, state)
    for gradient in world.steps():
        for name, g in gradient.items():
            world.parameters[name].grad = g
        optimizer.step()
        method.observe(world.run, None, state)
    for name, decay in (("m", DECAY), ("t", DECAY), ("v", 0.0)):
        theta = world.start[name].copy()
        m = v = np.zeros_like(theta)
        for t in range(1, STEPS + 1):
            g = world.gradients[t - 1][name]
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            top, root = m / (1 - 0.8**t), np.sqrt(v / (1 - 0.9**t))
            u = top / (root + EPS)
            scale = world.mean([a[name] for a in world.absolute], t, 0.7)
            if scale is not None:
                own = top / (root ** (1 - power) * np.maximum(scale, root) ** power + EPS)
                u = own * np.linalg.norm(u) / np.linalg.norm(own) if size == "matched" else own
            theta = theta - LR * decay * theta - LR * u
        np.testing.assert_allclose(world.parameters[name].detach().numpy(), theta, rtol=1e-10, atol=1e-12)


def test_token_agreement():
    world = World()
    found = filtered("token_agreement", world, strength=2.5, decay=0.6)
    for t in range(1, STEPS + 1):
        for name in SHAPES:
            g = world.gradients[t - 1][name]
            noise = world.mean([s[name] ** 2 for s in world.signed], t, 0.6)
            wanted = g if noise is None else g**3 / (g**2 + 2.5 * noise)
            np.testing.assert_allclose(found[t - 1][name], wanted, rtol=1e-10, atol=1e-14)


def test_shared_subspace():
    world = World()
    found = filtered("shared_subspace", world, strength=0.7, decay=0.6, memory=0.75)

    def short(a: np.ndarray) -> np.ndarray:
        return a if a.shape[0] <= a.shape[1] else a.T

    for name in ("m", "t"):
        energies, energy = [], np.zeros(())
        for t, g in enumerate((short(gradients[name]) for gradients in world.gradients), 1):
            energy = energy + max(0.25, 1 / t) * (g @ g.T - energy)
            energies.append(energy)
        for t in range(1, STEPS + 1):
            wanted = short(world.gradients[t - 1][name])
            noise = world.mean([short(s[name]) @ short(s[name]).T for s in world.signed], t, 0.6)
            if noise is not None:
                last = max(s for s in world.measured if s < t)
                wanted = energies[last - 1] @ np.linalg.inv(energies[last - 1] + 0.7 * noise) @ wanted
            # The ridge of 1e-6 beside the eigenvalues.
            np.testing.assert_allclose(short(found[t - 1][name]), wanted, rtol=1e-3, atol=1e-5)
    for t in range(STEPS):
        np.testing.assert_array_equal(found[t]["v"], world.gradients[t]["v"])


def test_the_filters_keep_what_tokens_share():
    """Far above chance nothing is lost, far below it nothing is kept; no number is not finite at the ends."""
    for name in ("token_agreement", "shared_subspace"):
        for size, kept in ((1e-8, 1.0), (1e8, 0.0)):
            world = World()
            world.signed = [{n: s * size for n, s in step.items()} for step in world.signed]
            found = filtered(name, world)
            for parameter in "mt":
                g = world.gradients[-1][parameter]
                np.testing.assert_allclose(found[-1][parameter], kept * g, rtol=1e-4, atol=1e-4)
        world = World()
        world.gradients = [{n: g * 0 for n, g in step.items()} for step in world.gradients]
        world.signed = [{n: s * 0 for n, s in step.items()} for step in world.signed]
        assert all((found["m"] == 0).all() for found in filtered(name, world))


def test_a_placebo_learns_of_other_coordinates():
    for name, kind in (("token_adam", "absolute"), ("token_agreement", "signed")):
        world = World()
        true, placebo = load_intervention(name), load_intervention(f"placebo:{name}")
        states = [m.init_state(world.run, torch.Generator().manual_seed(0)) for m in (true, placebo)]
        orders = []
        for _ in world.steps():
            for method, state in zip((true, placebo), states, strict=True):
                method.observe(world.run, None, state)
            ours, theirs = (state["means"]["m"].flatten() for state in states)
            assert not torch.equal(ours, theirs), kind
            torch.testing.assert_close(ours.sort().values, theirs.sort().values)
            orders.append([int((ours - x).abs().argmin()) for x in theirs])
        assert all(order == orders[0] for order in orders)  # always the same ones


@dataclass(frozen=True)
class Sums(Intervention):
    """Notes the step of the sums that it sees."""

    name = "sums"
    needs = frozenset({"token_sums"})
    cadence = 4
    samples = 3

    def init_state(self, run, generator):
        return {"generator": generator, "seen": []}

    def lr_factor(self, run, state):
        state["seen"].append([run.step, run.token_sums.step, run.token_sums.count])
        return 1.0


@dataclass(frozen=True)
class Halved(Intervention):
    """Halves every gradient."""

    name = "halved"

    def filter(self, run, name, gradient, state):
        return gradient / 2


def run_of(folder: Path, *methods: Intervention, **values) -> TrainingRun:
    config = plain(values)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_dict())
    return TrainingRun(config, folder, list(methods))


@pytest.mark.usefixtures("cache")
def test_the_sums_are_those_of_the_batch_every_cadence_steps(tmp_path: Path):
    run = run_of(tmp_path, Sums())
    run.loop(None)
    seen = run.methods.states["sums"]["seen"]
    assert [row[:2] for row in seen] == [[1, 1], [2, 1], [3, 1], [4, 4], [5, 4], [6, 4]]
    assert {row[2] for row in seen} == {4}  # 3, rounded up to one of each of the 4 sequences
    fresh = run_of(tmp_path / "fresh", Sums())
    fresh.methods.run.step = 1
    batch = fresh.batch(1)
    fresh.gradient(batch, 1)
    fresh.model.zero_grad()
    token_losses(fresh.model, batch).mean().backward()
    for name, p in fresh.model.named_parameters():
        torch.testing.assert_close(fresh.methods.run.token_sums.sum[name], p.grad)


@pytest.mark.usefixtures("cache")
def test_a_checkpoint_keeps_the_sums(tmp_path: Path):
    run = run_of(tmp_path, Sums())
    run.loop(None)
    again = TrainingRun(run.config, tmp_path, [Sums()])
    assert again.resume() == 6
    kept, found = run.methods.run.token_sums, again.methods.run.token_sums
    assert (found.step, found.count, found.num_tokens) == (kept.step, kept.count, kept.num_tokens) == (4, 4, 32)
    for kind in ("sum", "signed_sum", "abs_sum"):
        ours, theirs = getattr(kept, kind), getattr(found, kind)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    baseline = trained(plain({}), tmp_path / "plain").folder
    assert "token_sums" not in checkpoints.load(baseline / checkpoints.RESUME, 6)


@pytest.mark.usefixtures("cache")
def test_a_gradient_that_lies_otherwise_in_memory_is_the_same_gradient(tmp_path: Path):
    """A fused optimizer reads it as the parameter lies."""

    class Turned(Intervention):
        name = "turned"

        def filter(self, run, name, gradient, state):
            return gradient.T.contiguous().T if gradient.ndim == 2 else gradient

    weights = []
    for folder, methods in (("plain", []), ("turned", [Turned()])):
        run = run_of(tmp_path / folder, *methods)
        run.loop(None)
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("spec", ["none", "pcgrad", "and_mask"])
def test_a_filter_sees_the_gradient_before_it_is_clipped(tmp_path: Path, spec: str):
    def norm(folder: str, *more: Intervention) -> float:
        run = run_of(tmp_path / folder, *load_spec(spec, {}), *more)
        run.methods.run.step = 1
        run.gradient(run.batch(1), 1)
        return float(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm())

    assert norm("halved", Halved()) == pytest.approx(norm("plain") / 2)


def test_two_filters_are_refused():
    with pytest.raises(ValueError, match="filter"):
        load_spec("token_agreement+shared_subspace", {})


def test_what_a_filter_may_not_return_is_named():
    class Wrong(Halved):
        def filter(self, run, name, gradient, state):
            return gradient * np.nan if name == "a" else gradient[:1]

    methods = Methods([Wrong()], RunView(step=3))
    with pytest.raises(InterventionError, match="'halved', hook filter, step 3: the gradient of a has entries"):
        methods.filter("a", torch.ones(2))
    with pytest.raises(InterventionError, match=r"hook filter, step 3: must return a tensor of shape \(2,\) for b"):
        methods.filter("b", torch.ones(2))
