"""Every intervention and placebo passes the shipped suite; and the suite catches a plugin that breaks a law."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zslx.intervention import registry
from zslx.intervention.discovery import discover
from zslx.testing import CHECKS, Subject, examine

QUICK = {"none", "focal", "pcgrad", "placebo:and_mask"}  # one of each kind; the others are CI's
# A placebo is its method with one hook replaced by that of its kind: one of each kind for CI, all in the slow tests.
KINDS = ("pcgrad", "agreement", "focal", "infobatch", "difficulty", "adaptive_rate", "token_agreement")
PLACEBOS = {f"placebo:{name}" for name in KINDS}

pytestmark = pytest.mark.usefixtures("cache")


def names() -> list[str]:
    """Our own interventions that can be asked for, and the placebos of those that have one."""
    own = [n for n, [s, *_] in discover().items() if (s.module or "").startswith("interventions.")]
    cards = {n: registry.load_class(n) for n in own if n != "placebo"}
    found = [n for n, cls in cards.items() if not cls.status.startswith("absent")]
    return found + [f"placebo:{n}" for n in found if cards[n].placebo]


def marks(name: str) -> list[pytest.MarkDecorator]:
    if name in QUICK:
        return []
    return [pytest.mark.slow if name.startswith("placebo:") and name not in PLACEBOS else pytest.mark.medium]


def test_every_kind_of_placebo_is_tested_each_time():
    kinds = {registry.load_class(name.rpartition(":")[2]).placebo for name in PLACEBOS}
    assert kinds == {registry.load_class(n).placebo for n in names() if not n.startswith("placebo:")} - {None}


@pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in names()])
def test_intervention(name: str, tmp_path: Path):
    results = examine(Subject(name, tmp_path))
    failures = [f"{check.__name__}: {why}" for check, result, why in results if result == "fail"]
    assert not failures, "\n".join(failures)


def test_every_check_applies_to_something(tmp_path: Path):
    """No check is skipped everywhere."""
    applied = set()
    for name in ("focal", "random"):
        applied |= {check for check, result, _ in examine(Subject(name, tmp_path / name)) if result != "skip"}
    assert applied == set(CHECKS)


def law(name: str) -> Callable[[Subject], None]:
    return next(check for check in CHECKS if check.__name__ == name)


HEAD = '''
"""A plugin that breaks one law of the suite."""
import itertools
import torch
from dataclasses import dataclass
from zslx import GradientMethod, Intervention, setting

@dataclass(frozen=True)
class Bad(BASE):
    """Weighs tokens."""
    name = "bad"
'''
TOKENS = "def token_weights(self, run, view, state):\n"
BROKEN = {
    # law: (what the class has beside its name, what the failure must say)
    "resumes": (
        "def init_state(self, run, generator):\n"
        "    object.__setattr__(self, 'calls', 0)\n"  # remembered by the object, not in `state`
        "    return {'generator': generator}\n" + TOKENS + "    object.__setattr__(self, 'calls', self.calls + 1)\n"
        "    return view.losses ** (1 + self.calls / 4)\n",
        "must lie in `state`",
    ),
    "resumes, a global of the module": (
        "COUNT = itertools.count(1)\n" + TOKENS + "    return view.losses ** (1 + next(self.COUNT) / 4)\n",
        "must lie in `state`",
    ),
    "resumes, the records alone": (
        "COUNT = itertools.count(1)\n"
        "def observe(self, run, stats, state):\n    pass\n"
        "def metrics(self, run, state):\n    return {'calls': next(self.COUNT)}\n",
        "steps.jsonl",
    ),
    "packs": (
        # of all runs of the process
        TOKENS + "    torch.seen = getattr(torch, 'seen', 0.0) + float(view.losses.mean())\n"
        "    return 1 + view.losses * torch.seen % 1\n",
        "in a pack of 3 seeds bad is another run",
    ),
    "neutral": (
        "neutral = {'power': 0.0}\npower: float = setting(1.0, 'power', low=0.0, high=2.0)\n"
        + TOKENS + "    return view.losses ** (self.power + 1e-3)\n",
        "not bitwise the baseline",
    ),
    "neutral, through the engine": (
        "neutral = {}\ndef group_weights(self, run, gramian, group_losses, state):\n"
        "    return torch.linspace(1, 1.00001, len(gramian)).to(gramian)\n",
        "is not the baseline",
    ),
    "acts": (TOKENS + "    return view.losses * 0 + 1\n", "it does nothing"),
    "hands_off": (
        "def observe(self, run, stats, state):\n    next(iter(run.parameters.values())).data.mul_(1.001)\n",
        "changes weights in observe",
    ),
    "no_global_draws": (TOKENS + "    return torch.rand(view.losses.shape)\n", "global generator of torch"),
    "no_global_draws, unnoticed": (
        TOKENS + "    kept = torch.get_rng_state()\n    weights = torch.rand(view.losses.shape)\n"
        "    torch.set_rng_state(kept)\n    return weights\n",
        "two runs of bad with one seed differ",
    ),
    "survives_gramians": (
        "def group_weights(self, run, gramian, group_losses, state):\n    return 1 / gramian.diagonal()\n",
        "weights are not finite",
    ),
    "survives_gramians, its dtype": (
        "def group_weights(self, run, gramian, group_losses, state):\n    return torch.ones(len(gramian))\n",
        "weights are torch.float32, the Gramian torch.float64",
    ),
    "refuses_settings": (
        "power: str = setting('a', 'power', choices=('a', 'b'))\ndef __post_init__(self):\n    pass\n"
        + TOKENS + "    return view.losses\n",
        "is taken",
    ),
    "refuses_settings, unclear": (
        "power: float = setting(1.0, 'power', low=0.0)\ndef __post_init__(self):\n"
        "    if self.power < 0: raise ValueError('bad setting')\n" + TOKENS + "    return view.losses\n",
        "without naming key, value",
    ),
    "documented": (
        "power: float = setting(1.0, '')\n" + TOKENS + "    return view.losses\n",
        "does not say what it means",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_plugin_is_caught(broken: str, plugins: Path, tmp_path: Path):
    body, message = BROKEN[broken]
    base = "GradientMethod" if "group_weights" in body else "Intervention"
    (plugins / "bad.py").write_text(HEAD.replace("BASE", base) + textwrap.indent(body, "    "))
    with pytest.raises(AssertionError, match=message):
        law(broken.partition(",")[0])(Subject("bad", tmp_path / "runs"))


def test_instruments_that_train_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`unobserved` on an instrument that moves a weight by one part in 10^7."""
    from zslx.instruments.during_training import Instruments

    true = Instruments.after

    def meddling(self, step, model, *arguments, **more):
        record = true(self, step, model, *arguments, **more)
        next(iter(model.parameters())).data.mul_(1 + 2e-7)
        return record

    monkeypatch.setattr(Instruments, "after", meddling)
    subject = Subject("none", tmp_path)
    with pytest.raises(AssertionError, match="instruments change the run of none"):
        law("unobserved")(subject)


def test_unchecked_hook_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`names_its_failures` on a run that takes any token weights."""
    from zslx.intervention.hooks import HOOKS, Hook

    monkeypatch.setitem(HOOKS, "token_weights", Hook(lambda given, *_: given))
    with pytest.raises(AssertionError, match="token_weights that returns"):
        law("names_its_failures")(Subject("focal", tmp_path))


def test_unscaled_gradient_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`normalised` on a run that does not rescale the combined gradient."""
    monkeypatch.setattr("zslx.training.group_weights.matched_scale", lambda gramians, weights: torch.ones(1))
    with pytest.raises(AssertionError, match="of the plain one's"):
        law("normalised")(Subject("mgda", tmp_path))


def test_unnormalised_token_weights_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`normalised` on a run that takes token weights as they come."""
    from zslx.intervention.composed import Methods

    true = Methods.token_weights
    monkeypatch.setattr(Methods, "token_weights", lambda self, view: true(self, view) * 1.001)
    with pytest.raises(AssertionError, match=r"token weights have mean 1\.001"):
        law("normalised")(Subject("focal", tmp_path))
