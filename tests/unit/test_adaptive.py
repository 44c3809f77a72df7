"""Controllers on simulated plants, in closed form; their placebos, which replay another run's actions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from zslx import Controller, Intervention, RunView, load_intervention
from zslx.intervention.discovery import discover
from zslx.intervention.hooks import HOOKS
from zslx.intervention.registry import describe
from zslx.runs.load import reference_actions
from zslx.runs.records import read_run
from zslx.testing.subject import Subject, plain, trained


def started(name: str, run: RunView, seed: int = 0, **settings) -> tuple[Intervention, dict]:
    method = load_intervention(name, **settings)
    return method, method.init_state(run, torch.Generator().manual_seed(seed))


def driven(name: str, hook: str, plant: Callable[[float, int], float | None], readings: int, **settings) -> list[float]:
    """What the hook gives before the first reading and after each one; the plant makes D of factor and time."""
    run = RunView(seq_len=64, batch_size=16)
    method, state = started(name, run, **settings)
    found = []
    for n in range(readings + 1):
        for _ in range(3):  # a reading acts once, whatever the steps to the next one
            run.step += 1
            given = getattr(method, hook)(run, state)
        found.append(given)
        factor = math.exp(state["levels"][0])
        run.interference = {"step": run.step, "D": plant(factor, n), "M": 1.0}
    return found


def test_a_rate_falls_step_by_step_until_a_linear_plant_is_in_the_band():
    found = driven("adaptive_rate", "lr_factor", lambda f, n: 0.95 + 0.1 * math.log(f), 40, step=0.05, band=0.012)
    needed = math.ceil((0.95 - 0.9 - 0.012) / (0.1 * 0.05))
    assert needed == 8
    assert found == pytest.approx([math.exp(-0.05 * min(n, needed)) for n in range(41)], rel=1e-12)


def test_a_band_narrower_than_a_step_ends_in_a_cycle_of_two():
    found = driven("adaptive_rate", "lr_factor", lambda f, n: 0.913 + 0.1 * math.log(f), 9, step=0.1, band=0.001)
    assert found == pytest.approx([1, *[math.exp(-0.1), math.exp(-0.2)] * 4, math.exp(-0.1)])


@pytest.mark.parametrize("signal", [0.9, 0.9199, 0.8801, None])
def test_nothing_moves_within_the_band_and_without_a_reading(signal: float | None):
    assert driven("adaptive_rate", "lr_factor", lambda f, n: signal, 5, band=0.02, highest=2.0) == [1.0] * 6


def test_a_target_out_of_reach_drives_to_the_limit_and_the_way_back_begins_at_once():
    found = driven("adaptive_rate", "lr_factor", lambda f, n: 0.99 if n < 10 else 0.5, 12, step=0.5, lowest=0.2)
    path = [1, math.exp(-0.5), math.exp(-1), math.exp(-1.5), *[0.2] * 7, 0.2 * math.exp(0.5), 0.2 * math.e]
    assert found == pytest.approx(path, rel=1e-12)
    risen = driven("adaptive_rate", "lr_factor", lambda f, n: 0.5, 5, step=0.5)
    assert risen == pytest.approx([1.0] * 6)  # not above the schedule


def test_steps_of_one_size_follow_the_median_of_a_noisy_reading():
    noise = [0.0, 0.001, -0.001, 0.002, -0.9]  # its mean is far below its median, 0
    found = driven(
        "adaptive_rate", "lr_factor", lambda f, n: 0.9 + 0.2 * math.log(f) + noise[n % 5], 400, step=0.01, band=0.0,
        highest=2.0,
    )  # fmt: skip
    assert abs(math.log(found[-1])) < 0.05


def test_a_batch_grows_while_interference_is_high():
    found = driven("adaptive_batch", "batch_size", lambda f, n: 0.99 if n < 8 else 0.1, 30, step=0.1)
    up = [math.floor(16 * math.exp(0.1 * min(n, math.log(2) / 0.1)) + 0.5) for n in range(9)]
    assert found[:9] == up and up[-1] == 32
    assert found[9] == math.floor(32 * math.exp(-0.1) + 0.5) and found[-1] == 8


def test_sequences_grow_to_the_full_length_and_no_further():
    found = driven("adaptive_length", "sequence", lambda f, n: 0.99, 5, step=math.log(2))
    assert found == [8, 16, 32, 64, 64, 64]
    method, run = load_intervention("adaptive_length", lowest=0.3), RunView(seq_len=64)
    state = method.init_state(run, torch.Generator())
    assert HOOKS["sequence"].check(method.sequence(run, state), method, run) == 16  # of 19.2, a divisor
    with pytest.raises(ValueError, match="highest"):
        load_intervention("adaptive_length", highest=2.0)


def test_shares_move_to_the_domains_whose_loss_falls_faster():
    run = RunView(domains=("a", "b", "c"))
    method, state = started("adaptive_mixture", run, step=0.25, band=0.01)
    assert method.mixture(run, state) == [1, 1, 1]
    for losses in ([4.0, 2.0, 1.0], [3.6, 1.98, 0.95], [3.6, 1.98, 0.95], [3.564, 1.782, 0.9405]):
        run.domain_losses = losses
        method.mixture(run, state)
    # Falls .1, .01, .05 about .0533; the reading that repeats is none; .01, .1, .01 about .04.
    assert state["actions"] == [[0.25, -0.25, 0.0], [-0.25, 0.25, -0.25]]
    assert method.mixture(run, state) == pytest.approx([1, 1, math.exp(-0.25)])
    shares = method.metrics(run, state)
    assert shares["share_a"] == pytest.approx(1 / (2 + math.exp(-0.25))) and shares["actions_c"] == 1
    assert load_intervention("adaptive_mixture", step=0.0).mixture(run, state) is None


def test_a_domain_that_keeps_falling_gets_its_largest_share():
    run = RunView(domains=("a", "b"))
    method, state = started("adaptive_mixture", run, step=0.5)
    for n in range(20):
        run.domain_losses = [4 * 0.9**n, 4 * 0.99**n]
        shares = method.mixture(run, state)
    assert shares == pytest.approx([4.0, 0.25])


def replayed(seed: int, actions: list[list[float]], readings: int) -> list[list[float]]:
    run = RunView(reference_actions={"adaptive_rate": actions})
    method, state = started("placebo:adaptive_rate", run, seed, lowest=0.001)
    for n in range(1, readings + 1):
        run.interference = {"step": n, "D": 0.99, "M": 1.0}
        method.lr_factor(run, state)
    return state["actions"]


def test_the_placebo_takes_the_same_actions_at_other_times():
    actions = [[0.05 * (n % 3 - 1)] for n in range(30)]
    one, other = replayed(1, actions, 30), replayed(2, actions, 30)
    assert sorted(one) == sorted(other) == sorted(actions) and one != other and actions not in (one, other)
    assert replayed(1, actions, 40)[30:] == one[:10]  # from the start again
    assert replayed(1, [], 2) == [[0.0], [0.0]]  # a run too short for a reading
    with pytest.raises(ValueError, match="steered 2 numbers; allowed is one that steered 1"):
        replayed(1, [[0.1, 0.2]], 1)


@pytest.mark.usefixtures("cache")
def test_a_run_records_what_its_controller_did_and_its_placebo_replays_it(tmp_path):
    settings = {"adaptive_rate.cadence": 3, "adaptive_rate.step": 0.3, "adaptive_rate.band": 0.0, "train.steps": 40}
    outcome = trained(plain({"intervention": "adaptive_rate"} | settings), tmp_path / "donor")
    steps = read_run(outcome.folder).steps
    assert steps["lr"][5:] == pytest.approx(steps["lr"][2] * steps["adaptive_rate/factor"][5:])  # warmed up
    actions = reference_actions(str(tmp_path / "donor"), "adaptive_rate")
    assert len(actions) == 14 and steps["adaptive_rate/actions"][-1] == sum(a != [0.0] for a in actions) > 0
    values = {"intervention": "placebo:adaptive_rate", "reference": str(tmp_path / "donor"), "train.seed": 5}
    placebo = trained(plain(settings | values), tmp_path / "placebo")
    found = placebo.state["interventions"]["placebo:adaptive_rate"]["actions"]
    assert sorted(found) == sorted(actions)
    plain_run = trained(plain({}), tmp_path / "plain")
    for folder, message in (("", "give reference=RUN_FOLDER"), (plain_run.folder, "is a run of none; allowed is")):
        with pytest.raises(ValueError, match=message):
            reference_actions(str(folder), "adaptive_rate")


def test_a_controller_of_a_plugin_needs_its_errors_alone(plugins, tmp_path):
    assert issubclass(Controller, Intervention)
    text = '''
from dataclasses import dataclass
from zslx import Controller

@dataclass(frozen=True)
class Own(Controller):
    """Raises the rate at every tenth step."""
    name = "own"

    def errors(self, run, state):
        return [1.0] if run.step % 10 == 0 else None

    def lr_factor(self, run, state):
        return self.factors(run, state)[0]
'''
    (plugins / "own.py").write_text(text)
    card = describe("own", discover()["own"])  # as listed, without running it
    assert [row["name"] for row in card["settings"]] == ["band", "step", "lowest", "highest", "cadence"]
    run = RunView()
    method, state = started("own", run, highest=9.0)
    for run.step in range(1, 31):
        factor = method.lr_factor(run, state)
    assert factor == pytest.approx(math.exp(0.15))
    assert Subject("placebo:own", tmp_path).cls.needs == {"reference_actions"}
