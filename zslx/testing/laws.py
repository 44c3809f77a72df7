"""What every intervention owes its users, one function a law.

resumes             stopped anywhere and resumed == never stopped, bitwise: weights, optimizer, data, state, records
packs               trained in a pack with other seeds == trained by itself, to 1e-9 in float64
neutral             at its neutral setting it is the baseline: bitwise in float32; to 1e-9 in float64 where the
                    gradient comes from the engine, which sums in another order
unobserved          instruments change nothing of it
no_global_draws     the global generators are left alone, and do not matter
normalised          token weights have mean 1 unless `keep_scale`; the gradient has the plain norm if `matched`
packed_weights      group weights of a pack's runs solved at once == those of each run alone, to 1e-9
survives_gramians   finite weights for Gramians that are singular, zero, rank 1, badly scaled, K = 1
acts                its default settings change the run
hands_off           no hook changes a weight: that is the optimizer's
names_its_failures  what raises or returns nonsense in a hook is named: plugin, hook, step
refuses_settings    a bad setting is refused with key, value and what is allowed
documented          the card says what it does, every setting what it means, its hooks something
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from zslx.intervention import registry
from zslx.intervention.base import Intervention, RunView
from zslx.intervention.composed import InterventionError
from zslx.intervention.gradient_method import GradientMethod
from zslx.intervention.hooks import HOOKS, implemented
from zslx.testing.gramians import hard_gramians
from zslx.testing.subject import STEPS, WATCHED, NotApplicable, Subject, global_draws_watched, with_hooks
from zslx.training.scale import SCALE_LIMITS

PACKED_SEEDS, PACKED_STEPS = (0, 1, 2), 20
LONGER = 128  # steps of a second try, for a method that starts late
ENGINE_TOLERANCE = 1e-9  # ‖Δθ‖/‖θ‖ after the tiny run, float64


def resumes(subject: Subject) -> None:
    always = {"run.resume_seconds": 0}
    whole, resumed = subject.run(always), subject.run(always, stops=(3, 5))
    different = whole.difference(resumed)
    assert different is None, (
        f"stopped at steps 3 and 5 and resumed, {subject.name} is not the same run: {different} differs. "
        "Whatever a method remembers must lie in `state`, and every draw use state['generator']"
    )


def packs(subject: Subject) -> None:
    values = [{"train.dtype": "float64", "train.steps": PACKED_STEPS, "train.seed": seed} for seed in PACKED_SEEDS]
    alone = [subject.run(one) for one in values]
    for one, together in zip(alone, subject.pack(values), strict=True):
        distance = together.distance(one)
        assert distance < ENGINE_TOLERANCE, (
            f"in a pack of {len(values)} seeds {subject.name} is another run: weights {distance:.1e} apart. Whatever a "
            "method remembers must lie in `state`: all else may be shared by the runs"
        )


def packed_weights(subject: Subject) -> None:
    """Twice, since what a method remembers of a step counts in the next."""
    method = subject.method
    if not isinstance(method, GradientMethod) or not method.solves_packs():
        raise NotApplicable("has no packed form of its group weights")
    by_groups: dict[int, list[Tensor]] = {}
    for _, gramian in hard_gramians():
        by_groups.setdefault(len(gramian), []).append(gramian)
    for groups, every in by_groups.items():
        run = RunView(step=1, batch_size=groups, domains=["text"] * groups)
        states, own = (
            [method.init_state(run, torch.Generator().manual_seed(r)) for r in range(len(every))] for _ in range(2)
        )
        losses = torch.linspace(0.5, 1.5, groups, dtype=torch.float64).expand(len(every), -1)
        for _ in range(2):
            together = method.packed_group_weights(torch.stack(every), losses, states)
            alone = [method.group_weights(run, *one) for one in zip(every, losses, own, strict=True)]
            for r, weights in enumerate(alone):
                close = weights is not None and torch.allclose(together[r], weights, rtol=ENGINE_TOLERANCE, atol=0)
                assert close, f"with {len(every)} runs at once {subject.name} gives {together[r]}, alone {weights}"


def neutral(subject: Subject) -> None:
    if subject.cls.neutral is None:
        raise NotApplicable("declares no neutral setting")
    if issubclass(subject.cls, GradientMethod):
        precise = {"train.dtype": "float64"}
        distance = subject.run(precise, **subject.cls.neutral).distance(subject.baseline(**precise))
        assert distance < ENGINE_TOLERANCE, (
            f"at {dict(subject.cls.neutral)} {subject.name} is not the baseline: weights {distance:.1e} apart"
        )
        return
    different = subject.run(**subject.cls.neutral).difference(subject.baseline(), weights_only=True)
    assert different is None, (
        f"at {dict(subject.cls.neutral)} {subject.name} is not bitwise the baseline: {different} differs"
    )


def unobserved(subject: Subject) -> None:
    watched = subject.run(WATCHED)
    different = subject.whole.difference(watched, weights_only=True)
    assert different is None, f"instruments change the run of {subject.name}: {different} differs"
    kept = [outcome.records["steps.jsonl"] for outcome in (subject.whole, watched)]
    assert kept[0] == kept[1], f"instruments change the steps of {subject.name}"


def no_global_draws(subject: Subject) -> None:
    with global_draws_watched() as drawn:
        outcome = subject.run()
    assert not drawn, f"{subject.name} draws from the global generator of {', '.join(drawn)}: use state['generator']"
    different = subject.whole.difference(outcome)
    assert different is None, f"two runs of {subject.name} with one seed differ: {different}"


def normalised(subject: Subject) -> None:
    cls, weighs = subject.cls, subject.overrides("token_weights")
    method = subject.method
    matched = isinstance(method, GradientMethod) and method.scale == "matched"
    if not weighs and not matched:
        raise NotApplicable("weighs no tokens and combines no gradients at matched scale")
    if weighs:
        for step, weights in _token_weights(subject):
            assert (weights >= 0).all() and torch.isfinite(weights).all()
            mean = float(weights.double().mean())
            assert cls.keep_scale or abs(mean - 1) < 1e-5, f"token weights have mean {mean:.6f} at step {step}"
    elif not subject.overrides("extra_loss", "mixture", "sequence"):
        _has_plain_norm(subject)


def _token_weights(subject: Subject) -> list[tuple[int, Tensor]]:
    """The weights that act in each step of a run."""
    run, seen = subject.stand_in(subject.method), []
    compose = run.methods.token_weights

    def spy(view: Any) -> Tensor | None:
        weights = compose(view)
        assert weights is not None
        seen.append((run.methods.run.step, weights))
        return weights

    run.methods.token_weights = spy  # type: ignore[method-assign]
    run.loop(None)
    assert len(seen) == STEPS
    return seen


def _has_plain_norm(subject: Subject) -> None:
    """The first step's gradient, from the same weights and batch, has the baseline's norm."""
    ours, theirs = (_first_step(o.records["steps.jsonl"]) for o in (subject.whole, subject.baseline()))
    if ours.get("skipped") or ours.get("scale") in SCALE_LIMITS:
        return
    ratio = ours["grad_norm"] / theirs["grad_norm"]
    assert abs(ratio - 1) < 1e-4, f"scale=matched, but the gradient's norm is {ratio:.5f} of the plain one's"


def _first_step(lines: bytes) -> dict[str, Any]:
    return json.loads(lines.partition(b"\n")[0])


def survives_gramians(subject: Subject) -> None:
    if not subject.overrides("group_weights"):
        raise NotApplicable("weighs no groups")
    method = subject.method
    assert isinstance(method, GradientMethod)
    for what, gramian in hard_gramians():
        for dtype in (torch.float64, torch.float32):
            if what.startswith(("norms", "entries")) and dtype is torch.float32:
                continue  # the Gramian itself would overflow
            losses = torch.linspace(0.5, 1.5, len(gramian), dtype=dtype)
            try:
                run = RunView(step=1, batch_size=len(gramian), domains=["text"] * len(gramian))
                state = method.init_state(run, torch.Generator().manual_seed(0))
                weights = method.group_weights(run, gramian.to(dtype), losses, state)
            except ValueError as error:
                # Some methods need a least number of groups; they must say so.
                assert f"{len(gramian)} groups are too few" in str(error), f"{what}: {error}"
                continue
            if weights is not None:
                assert weights.shape == losses.shape, f"{what}: weights of shape {tuple(weights.shape)}"
                assert weights.dtype == dtype, f"{what}: weights are {weights.dtype}, the Gramian {dtype}"
                assert torch.isfinite(weights).all(), f"{what}: weights are not finite"


def hands_off(subject: Subject) -> None:
    """No hook but `optimizer` touches the weights: a fingerprint of them is taken around every call."""
    for hook in set(implemented(subject.cls)) - {"optimizer"}:
        touched: list[str] = []

        def watched(
            self: Intervention, run: RunView, *arguments: Any, hook: str = hook, touched: list[Any] = touched
        ) -> Any:
            before = {name: p.detach().clone() for name, p in run.parameters.items()}
            given = getattr(subject.cls, hook)(self, run, *arguments)
            touched += [name for name, p in run.parameters.items() if not torch.equal(p.detach(), before[name])]
            return given

        subject.stand_in(with_hooks(subject.cls, **{hook: watched})(**subject.settings)).loop(None)
        assert not touched, f"{subject.name} changes weights in {hook}, behind the optimizer's back: {touched[0]}"


def acts(subject: Subject) -> None:
    """With its default settings the run is not the baseline's: a hook that is never used would leave it so."""
    if subject.name == "none":
        raise NotApplicable("is the baseline")
    if subject.overrides("average"):
        raise NotApplicable("acts on the evaluated weights")
    if "interference" in subject.cls.needs:
        raise NotApplicable("acts where interference calls for it, which a tiny run may never do")
    if subject.whole.difference(subject.baseline(), weights_only=True) is None:
        longer = {"train.steps": LONGER}
        different = subject.run(longer).difference(subject.baseline(**longer), weights_only=True)
        assert different is not None, (
            f"in {LONGER} steps with its default settings {subject.name} is bitwise the baseline: it does nothing"
        )


def names_its_failures(subject: Subject) -> None:
    for hook in implemented(subject.cls):
        _assert_named(subject, hook, _raising, "raises RuntimeError")
        for what, wrong in WRONG.get(hook, {}).items():
            _assert_named(subject, hook, wrong, f"returns {what}")


def _raising(true: Any) -> Any:
    raise RuntimeError("on purpose")


# What a hook may not return, made from what it does return.
WRONG: dict[str, dict[str, Callable[[Any], Any]]] = {
    "depth": {
        "0": lambda n: 0,
        "more than there are": lambda n: n + 10**6,
        "a share": lambda n: 0.5,
    },
    "mixture": {
        "too few shares": lambda p: [],
        "NaN": lambda p: [math.nan for _ in p],
        "no share": lambda p: [0.0 for _ in p],
        "a negative share": lambda p: [-1.0, *(2.0 for _ in p)][: len(list(p))],
    },
    "sequence": {"0": lambda n: 0, "a text": lambda n: "long"},
    "batch_size": {"0": lambda n: 0, "a share": lambda n: 0.5},
    "context": {
        "the wrong shape": lambda c: c[..., :-1],
        "positions to come": lambda c: c + 10**6,
        "a number": lambda c: 3,
    },
    "group_ids": {"ids alone": lambda g: g[0], "ids beyond K": lambda g: (g[0] + g[1], g[1])},
    "token_weights": {
        "the wrong shape": lambda w: w[:, :1],
        "NaN": lambda w: w * math.nan,
        "no weight": lambda w: w * 0,
        "negative weights": lambda w: -w,
    },
    "extra_loss": {"a vector": lambda x: torch.stack([x, x]), "NaN": lambda x: x * math.nan},
    "group_weights": {
        "the wrong shape": lambda w: w[:-1],
        "NaN": lambda w: w * math.nan,
        "no weight": lambda w: w * 0,
    },
    "combine": {"the wrong shape": lambda g: g.flatten()[:1], "NaN": lambda g: g * math.nan},
    "filter": {"the wrong shape": lambda g: g.flatten()[:0], "NaN": lambda g: g * math.nan},
    "windows": {"too few": lambda w: [0], "windows beyond the text": lambda w: [10**9 for _ in w]},
    "optimizer": {"None": lambda o: None, "no optimizer": lambda o: []},
    "lr_factor": {"NaN": lambda f: math.nan, "a negative factor": lambda f: -1.0},
    "average": {"nothing": lambda p: {}, "NaN": lambda p: {n: t * math.nan for n, t in p.items()}},
    "metrics": {"a text": lambda m: {"key": "text"}},
}


def _assert_named(subject: Subject, hook: str, wrong: Callable[[Any], Any], what: str) -> None:
    """A run whose hook returns `wrong` of what it should return fails, naming the method, the hook and the step."""
    cls = subject.cls

    def broken(self: Intervention, *arguments: Any) -> Any:
        given = getattr(cls, hook)(self, *arguments)
        # What a method leaves to the run (no mixture, a skipped step) stays so.
        return given if given is None and hook not in ("observe", "optimizer") else wrong(given)

    try:
        subject.stand_in(with_hooks(cls, **{hook: broken})(**subject.settings)).loop(None)
    except InterventionError as error:
        text = str(error)
        named = f"intervention {subject.name!r}, hook {hook}, step" in text
        assert named and re.search(r"step \d+: ", text), f"{hook} that {what}: the error does not name it: {text}"
    else:
        raise AssertionError(f"{hook} that {what} goes unnoticed")


def refuses_settings(subject: Subject) -> None:
    plain = subject.name.rpartition(":")[2]
    for key, bad, allowed in [*_bad_values(subject.cls), ("no_such_setting", 1, "")]:
        try:
            registry.load_intervention(subject.name, **(subject.settings | {key: bad}))
        except ValueError as error:
            text = str(error)
            named = f"{plain}.{key}" in text and (key == "no_such_setting" or repr(bad) in text) and allowed in text
            assert named, f"{key}={bad!r} is refused without naming key, value or what is allowed: {text}"
        else:
            raise AssertionError(f"{plain}.{key}={bad!r} is taken")


def _bad_values(cls: type[Intervention]) -> Iterator[tuple[str, Any, str]]:
    """(key, a value that it must refuse, what the error must contain)."""
    for f in dataclasses.fields(cls):
        kind = f.type if isinstance(f.type, str) else f.type.__name__
        low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
        if kind in ("int", "float", "bool"):
            yield f.name, "many", "must be"
        if kind == "float":
            yield f.name, math.nan, "must be"
        if low is not None:
            yield f.name, low - 1 if kind == "int" else low - 1.0, str(low)
        if high is not None:
            yield f.name, high + 1 if kind == "int" else high + 1.0, str(high)
        if choices:
            yield f.name, "no such choice", str(choices[0])


def documented(subject: Subject) -> None:
    card = subject.cls.describe()
    assert card["description"], f"the class of {subject.name} has no docstring: it is the card that users read"
    for row in card["settings"]:
        assert row["help"], f"the setting {row['name']} does not say what it means"
    known = {f.name for f in dataclasses.fields(subject.cls)}
    assert set(subject.cls.neutral or {}) <= known, f"neutral names settings that {subject.name} does not have"
    own = set(implemented(subject.cls)) - {"group_ids"}
    assert own or subject.name == "none", f"{subject.name} implements no hook ({', '.join(HOOKS)})"


CHECKS: tuple[Callable[[Subject], None], ...] = (
    documented,
    refuses_settings,
    survives_gramians,
    packed_weights,
    normalised,
    acts,
    hands_off,
    names_its_failures,
    no_global_draws,
    resumes,
    packs,
    unobserved,
    neutral,
)
