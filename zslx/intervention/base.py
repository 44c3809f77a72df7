"""The base class of every intervention: what all families share.

An intervention acts at the hooks of a training step. In the order of the loop:

    depth(run, state)                   how many layers are in use                      curriculum, adaptive
    mixture(run, state)                 shares (D,) of the domains in the batch         data mixing
    batch_size(run, state)              how many windows of the text it holds           curriculum
    sequence(run, state)                positions T of its sequences                    curriculum
    windows(run, walk, state)           which windows of the text it holds              curriculum
    context(run, tokens, state)         how far back each position sees                 curriculum
    token_weights(run, view, state)     weights (B, T) of the tokens' losses            per-token reweighting
    extra_loss(run, view, state)        a scalar added to the mean loss
    (gradient hooks)                    see GradientMethod, gradient_method.py          gradient surgery
    filter(run, name, gradient, state)  each parameter's gradient, before clipping      token conflict
    lr_factor(run, state)               a factor on the configured learning rate        schedules, controllers
    optimizer(run, groups, state)       made once, when the run is built                optimization
    observe(run, stats, state)          learn from the finished step
    average(run, state)                 the weights to evaluate instead of the trained ones
    metrics(run, state)                 numbers for the step's record

Override the hooks that you need. When the run is built, the trainer looks once which hooks a class overrides; it never
calls the others, so they cost nothing. An intervention object holds settings, which never change. Whatever it has to
remember lies in `state`, a dict of tensors, numbers, strings, lists and generators that every checkpoint keeps, so
that each intervention resumes exactly. Take every random draw from `state["generator"]`.

One small example of each family is in docs/write-an-intervention.md.

Shapes: B sequences, T positions, D domains, K groups.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from zslx.config.fields import check
from zslx.config.run_config import Config
from zslx.gradients.parameter_roles import Role
from zslx.gradients.token_sums import TokenSums

if TYPE_CHECKING:
    from zslx.text.loader import Ids, Walk

State = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

# What a method may ask the trainer to compute, in `needs`.
NEEDS = {
    "entropy": "view.entropy (B, T), nats: entropy of the predicted distribution",
    "logits": "view.logits (B, T, V), with the graph",
    "reference_losses": "view.reference_losses (B, T), nats: of the reference run; in `windows` walk.reference_losses",
    "token_alignment": "view.token_alignment (B, T): product of each token's gradient with the batch's",
    "post_losses": "stats.post_losses (B, T), nats: losses of the same batch after the update, every `cadence` steps",
    "interference": "run.interference: D and M of the last measured update, every `cadence` steps",
    "domain_losses": "run.domain_losses (D,), nats: mean loss of each domain, every `cadence` steps",
    "reference_actions": "run.reference_actions: what the controller of the same method did in the reference run",
    "domain_gramian": "run.domain_gramian (D, D): products of the domains' mean gradients, every `cadence` steps",
    "token_sums": "run.token_sums: sums over single tokens' gradients, by coordinate, every `cadence` steps",
    "domain_variance": "run.domain_variance (D,): variance of a sequence's gradient, by domain, with the Gramian",
}


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    log: bool = False,
) -> Any:
    """A setting of an intervention: its default, what it means, and its range or choices (also those of tuning)."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "log": log}
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class RunView:
    """What every hook sees of the run.

    step: counted from 1, 0 while the run is built. steps: the length of the run. seq_len, batch_size: positions of a
    full-length sequence, and such sequences in a step. domains: their names (D). domain_tokens, token_counts: size of
    each domain's training text (D,), and how often each id occurs in it (V,). parameters: by name, the trained tensors
    themselves, to be read only. roles: by name, which part of the model a parameter belongs to (`group`: embedding,
    attention, mlp, norm, unembedding or other; `layer`). config: the whole configuration. depth: layers in use, all but
    where a method grows the model; 0 until it has been asked how many.

    What `interference`, `domain_losses`, `domain_gramian` and `domain_variance` have is measured for the methods that
    need it, on a control set: a fixed sample of the training text, with `control_sequences` (D,) of each domain. It is
    None until the first measurement. Losses are those after a step's update, gradients (float64, on the CPU) those of
    the domains' mean losses before it. The variance is E‖g − E g‖² over a domain's sequences, NaN where the set has
    one. The held-out set that judges the run is never shown to a method.
    `token_sums`: of a step's batch at the weights before its update, the losses unweighted; those last measured. By
    parameter `sum` Σ g_i, `abs_sum` Σ |g_i| and `signed_sum` Σ ±g_i, with the `step` (zslx/gradients/token_sums.py).
    `reference_actions`: of the reference run's controllers, by name, a list of actions a reading; for placebos.
    """

    step: int = 0
    steps: int = 1
    seq_len: int = 1
    batch_size: int = 1
    domains: Sequence[str] = ("text",)
    domain_tokens: Sequence[int] = (0,)
    token_counts: Tensor | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    depth: int = 0
    interference: Mapping[str, float | None] | None = None  # step, D, M; D is None where nothing changed
    domain_losses: Sequence[float] | None = None
    reference_actions: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    domain_gramian: Tensor | None = None
    domain_variance: Tensor | None = None
    control_sequences: Sequence[int] = ()
    token_sums: TokenSums | None = None


@dataclass(kw_only=True)
class StepView:
    """What a method sees of the current batch.

    tokens, targets: ids (B, T). losses: (B, T), nats, detached. domains: (B,), the domain index of each sequence.
    What `needs` asks for stands beside them; reading one of these without asking for it is an error that says so.
    `live_losses` (B, T), which extra_loss may build on, and `logits` carry the graph; all else is detached.
    """

    tokens: Tensor
    targets: Tensor
    losses: Tensor
    domains: Tensor

    if TYPE_CHECKING:  # what is computed only on demand is set by the trainer

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name in NEEDS:
            raise AttributeError(f"view.{name} is computed only for a method with needs = frozenset({{{name!r}}})")
        if name == "live_losses":
            raise AttributeError("view.live_losses exists in extra_loss only")
        raise AttributeError(f"the view of a step has no {name!r}")


@dataclass(kw_only=True)
class StepStats:
    """What a method may learn from after the step: the view, what was combined, and the losses after the update."""

    view: StepView
    gramian: Tensor | None = None  # (K, K)
    group_losses: Tensor | None = None  # (K,)
    group_weights: Tensor | None = None  # (K,)
    post_losses: Tensor | None = None  # (B, T); None at steps between those of the method's cadence


def hook(stub: F) -> F:
    """Marks a method of a base class as a hook that does nothing until it is overridden."""
    stub.is_stub = True  # type: ignore[attr-defined]
    return stub


@dataclass(frozen=True)
class Intervention:
    """Base class. Subclass it as a frozen dataclass whose fields are the settings, made with `setting(...)`.

    Class attributes:
        name        what INTERVENTION= asks for
        family      its folder: gradient_surgery, token_weighting, curriculum, data_mixing, optimization, ...
        source      the paper and its arXiv number
        cost        expected step time relative to the plain step, and memory
        neutral     settings at which the run equals the baseline; None if there are none
        needs       what the trainer must compute for it (NEEDS); `cadence`: at the first step and every how many
                    steps, where that has one; `samples`: how many tokens `token_sums` takes for Σ |g_i|, 0 for none
        keep_scale  token weights are not renormalised to mean 1, since their scale is part of the method
        placebo     what its placebo permutes: group_weights, elementwise, tokens, samples, windows, actions or
                    token_sums (see placebo.py); None if none exists: its control is then the baseline with an equally
                    tuned rate
        status      "available", or "absent: <reason>"
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    status: ClassVar[str] = "available"
    neutral: ClassVar[Mapping[str, Any] | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    cadence = 1  # without annotation, so that a method may make it a setting
    samples = 0
    keep_scale: ClassVar[bool] = False
    placebo: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check(f"{self.name}.{f.name}", getattr(self, f.name), f)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        """What the method remembers at the start. Keep the generator under "generator" (the default does)."""
        return {"generator": generator}

    @hook
    def depth(self, run: RunView, state: State) -> int:
        """Layers in use from this step on, the first of `run.config.model.n_layers`; no fewer than before.

        Also called once at step 0, for the layers of the start. The others cost nothing and are not updated. A layer
        comes into use with output projections of zero, so that the function stays what it was.
        """
        raise NotImplementedError

    @hook
    def mixture(self, run: RunView, state: State) -> Iterable[float] | None:
        """Shares (D,) of the domains in this step's batch, or None for the data's own."""
        raise NotImplementedError

    @hook
    def batch_size(self, run: RunView, state: State) -> int | None:
        """Windows of the text in this step, of `run.seq_len` tokens each, or None for `run.batch_size`."""
        raise NotImplementedError

    @hook
    def sequence(self, run: RunView, state: State) -> int | None:
        """Positions of this step's sequences, or None for all; the tokens of a step stay the same.

        Rounded down to a divisor of `run.seq_len`, so that one setting works at every length.
        """
        raise NotImplementedError

    @hook
    def windows(self, run: RunView, walk: Walk, state: State) -> Iterable[int] | tuple[Ids, Ids] | None:
        """Windows (B,) of this step, each from the domain that `walk.domains` names, or None for the seeded order.

        Or (domains (n,), first tokens (n,)): sequences of `walk.length` tokens that begin anywhere in `walk.streams`,
        as many as the step has.
        """
        raise NotImplementedError

    @hook
    def context(self, run: RunView, tokens: Tensor, state: State) -> Tensor | None:
        """For each position of `tokens` (B, T) the first position that it attends to, (B, T) or (T,), or None for all.

        Masks attention in training alone; the held-out loss is measured with the whole context.
        """
        raise NotImplementedError

    @hook
    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        """Weights (B, T), not negative, of the tokens' losses."""
        raise NotImplementedError

    @hook
    def extra_loss(self, run: RunView, view: StepView, state: State) -> Tensor:
        """A scalar, nats per token, built on view.live_losses or view.logits, that is added to the mean loss."""
        raise NotImplementedError

    @hook
    def filter(self, run: RunView, name: str, gradient: Tensor, state: State) -> Tensor:
        """The gradient of one parameter, as the step made it and before it is clipped, changed; of the same shape."""
        raise NotImplementedError

    @hook
    def lr_factor(self, run: RunView, state: State) -> float:
        """A factor, not negative, on the learning rate that the configured schedule gives for this step."""
        raise NotImplementedError

    @hook
    def optimizer(self, run: RunView, groups: list[dict[str, Any]], state: State) -> Any:
        """The optimizer, or a list of several, for these parameter groups ("params" and "weight_decay" each).

        Together they must hold every parameter once. `run.parameters` and `run.roles` tell what a parameter is.
        An optimizer may keep in `state` what other hooks have to see of it: this dict stays the method's own.
        """
        raise NotImplementedError

    @hook
    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        """Learn from the finished step."""
        raise NotImplementedError

    @hook
    def average(self, run: RunView, state: State) -> Mapping[str, Tensor]:
        """The weights that a user of this run would take, by the names of `run.parameters`; they are evaluated."""
        raise NotImplementedError

    @hook
    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        """Numbers for this step's record, each kept under `<name>/<key>`."""
        raise NotImplementedError

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether the class implements a hook."""
        return not getattr(getattr(cls, hook, hook_of_none), "is_stub", False)

    def card(self) -> dict[str, Any]:
        """Metadata with this object's settings."""
        card = self.describe()
        for row in card["settings"]:
            row["default"] = getattr(self, row["name"])
        return card

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Metadata for `zslx interventions list|show`: plain JSON values."""
        settings = []
        for f in dataclasses.fields(cls):
            kept = {k: f.metadata[k] for k in ("low", "high", "choices", "log") if f.metadata.get(k) is not None}
            row = {"name": f.name, "default": f.default, "type": str(f.type), "help": f.metadata.get("help", "")}
            settings.append(row | kept)
        return {
            "name": cls.name,
            "family": cls.family,
            "source": cls.source,
            "settings": settings,
            "cost": cls.cost,
            "status": cls.status,
            "placebo": cls.placebo,
            "description": inspect.cleandoc(cls.__doc__ or ""),
        }


@hook
def hook_of_none() -> None:
    """Stands for a hook that a class does not have."""
