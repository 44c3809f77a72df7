"""The base class of every intervention: the places of a training step where a method may act.

    mixture  = mixture(step, state)                which domains                    data mixing
    batch    = ... sequence(step, state)           length of the sequences          curriculum
    losses   = model(batch)                        (B, T) nats per token
    weights  = token_weights(view, state)          (B, T), renormalised to mean 1   per-token reweighting
    loss    += extra_loss(view, state)             a term that is no weight
    groups   = group_ids(view)                     ids (B,) or (B, T)               which gradients may conflict
    gradient = group_weights(gramian, losses, state)  (K,): the step is Σ_k w_k g_k gradient surgery
            or combine(sums, state)                per tensor, from Σg, Σ|g|, Σ sign g
    update   = optimizer(parameters), schedule(step)                                optimization
    observe(stats, state)                          after the step
    average(parameters, state)                     the weights that the run would ship

Override what you need: the trainer looks once, when the run is built, which hooks a class overrides, and what
nobody overrides is never called. A plugin object holds settings and nothing that changes; everything it
remembers lies in `state`, a dict of tensors, numbers, strings, lists and generators that the trainer keeps in
each checkpoint, so that every intervention resumes exactly. Every random draw uses `state["generator"]`.

Shapes: B sequences, T positions, D domains, K groups, P parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from zslx.config.fields import check

State = dict[str, Any]

# What a method may ask the trainer to compute (`needs`), and the exclusive places it may take (`claims`).
NEEDS = frozenset({"entropy", "reference_losses", "post_losses", "gramian", "token_alignment", "logits"})
PLACES = frozenset({"mixture", "sequence", "groups", "combination", "optimizer", "schedule", "average"})
SUMS = ("sum", "abs_sum", "sign_sum")
# Hooks that make the step go through the gradient engine.
SURGERY_HOOKS = ("group_weights", "combine")
CLAIMED_BY_HOOK = {
    "mixture": "mixture",
    "sequence": "sequence",
    "group_ids": "groups",
    "group_weights": "combination",
    "combine": "combination",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "average": "average",
}


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple | None = None,
    log: bool = False,
) -> Any:
    """A setting of an intervention: default, what it means, and its range or choices (also those of tuning)."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "log": log}
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class StepView:
    """What a method sees of the current step. Everything is detached; asking for more than `needs` fails.

    tokens, targets (B, T) ids; losses (B, T) nats; domains (B,) domain index of each sequence;
    entropy (B, T) nats of the predictive distribution; reference_losses (B, T) nats of the reference run;
    step counted from 1 of `steps`; num_domains D; token_counts (V,) of the training text.
    `live_losses` and `logits` carry the graph: only `extra_loss` may build on them.
    """

    step: int
    steps: int
    tokens: Tensor
    targets: Tensor
    losses: Tensor
    domains: Tensor
    num_domains: int
    live_losses: Tensor | None = None
    logits: Tensor | None = None
    entropy: Tensor | None = None
    reference_losses: Tensor | None = None
    token_alignment: Tensor | None = None
    token_counts: Tensor | None = None


@dataclass(kw_only=True)
class StepStats:
    """What a method may learn from after the step: the view, what was combined, the losses after the update."""

    view: StepView
    gramian: Tensor | None = None  # (K, K)
    group_losses: Tensor | None = None  # (K,)
    group_weights: Tensor | None = None  # (K,)
    post_losses: Tensor | None = None  # (B, T), same batch after the update
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CoordinateSums:
    """Sums over the K group gradients of one parameter, each of the parameter's shape (None if not asked for)."""

    name: str
    sum: Tensor
    abs_sum: Tensor | None = None
    sign_sum: Tensor | None = None
    count: int


@dataclass(frozen=True)
class Intervention:
    """Base class. Subclass as a frozen dataclass whose fields are the settings, made with `setting(...)`."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""  # the folder: gradient_surgery, token_weighting, ... controls
    source: ClassVar[str] = ""  # paper, arXiv number
    cost: ClassVar[str] = ""  # expected step time relative to the plain step, and memory
    status: ClassVar[str] = "available"  # or "absent: <reason>"
    neutral: ClassVar[Mapping[str, Any] | None] = None  # settings at which the run equals the baseline
    needs: ClassVar[frozenset[str]] = frozenset()
    sums: ClassVar[tuple[str, ...]] = ()  # of SUMS, what `combine` reads
    keep_scale: ClassVar[bool] = False  # token weights are not renormalised: their scale is the method
    signed: ClassVar[bool] = False  # group weights may have a negative total: the method may turn the step around
    proxy: ClassVar[bool] = False  # token groups: the Gramian of the unembedding alone stands for the whole
    scale: ClassVar[str] = "matched"  # rescale the combined gradient to the plain one's norm, or "paper": leave it
    placebo: ClassVar[str | None] = None  # group_weights | elementwise | tokens | samples | schedule: what its
    # placebo permutes; None: no placebo exists, the control is the baseline with an equally tuned rate

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check(f"{self.name}.{f.name}", getattr(self, f.name), f)

    # What a method remembers.
    def init_state(self, num_groups: int, generator: torch.Generator) -> State:
        """Fresh state for K = num_groups groups. Keep the generator under "generator" (the default does)."""
        return {"generator": generator}

    def count_groups(self, batch_size: int, num_domains: int) -> int:
        """K of this method's groups when a step has B sequences of D domains."""
        return batch_size

    def groups_tokens(self) -> bool:
        """Whether `group_ids` gives ids (B, T) of tokens, not (B,) of sequences."""
        return False

    # Data.
    def mixture(self, step: int, state: State) -> Iterable[float] | None:
        """Shares (D,) of the domains in this step's batch, or None for the data's own."""
        raise _not_overridden("mixture")

    def sequence(self, step: int, state: State) -> int | None:
        """Number of positions T of this step's sequences (tokens a step stay the same), or None for the full."""
        raise _not_overridden("sequence")

    # Loss.
    def token_weights(self, view: StepView, state: State) -> Tensor:
        """Weights (B, T), not negative, of the tokens' losses."""
        raise _not_overridden("token_weights")

    def extra_loss(self, view: StepView, state: State) -> Tensor:
        """A scalar (nats per token, with graph) added to the mean loss."""
        raise _not_overridden("extra_loss")

    # Gradient.
    def group_ids(self, view: StepView) -> tuple[Tensor, int]:
        """Group ids, (B,) of the sequences or (B, T) of the tokens, and the number of groups K."""
        raise _not_overridden("group_ids")

    def group_weights(self, gramian: Tensor, group_losses: Tensor, state: State | None) -> Tensor | None:
        """Weights (K,) of the group gradients from their Gramian (K, K) and losses (K,).

        All ones is the plain step. None skips the step. `state` is updated in place; None means a fresh one
        with a generator seeded 0. The result has the dtype of `gramian`.
        """
        raise _not_overridden("group_weights")

    def combine(self, sums: CoordinateSums, state: State) -> Tensor:
        """The gradient of one parameter from sums over its group gradients."""
        raise _not_overridden("combine")

    def mask(self, sums: CoordinateSums, combined: Tensor) -> Tensor:
        """What `combine` did to each coordinate, in the form that the placebo permutes: a factor on the plain gradient.

        A method whose factor has no bound, because it is large where the groups' gradients nearly cancel, overrides
        this and `apply_mask` with a form that has: permuted, a few huge factors would be the whole gradient.
        """
        nothing = sums.sum == 0
        return torch.where(nothing, 1.0, combined / torch.where(nothing, 1.0, sums.sum))

    def apply_mask(self, sums: CoordinateSums, mask: Tensor) -> Tensor:
        """The combined gradient of one parameter, from what `mask` gives."""
        return sums.sum * mask

    # Optimization.
    def optimizer(self, parameters: list[dict], config: Any) -> torch.optim.Optimizer:
        """The optimizer for these parameter groups (config: zslx.config.run_config.OptimConfig)."""
        raise _not_overridden("optimizer")

    def schedule(self, step: int, config: Any) -> float:
        """The factor on the peak learning rate at this step (config: zslx.config.run_config.Config)."""
        raise _not_overridden("schedule")

    def average(self, parameters: Mapping[str, Tensor], state: State) -> Mapping[str, Tensor]:
        """The weights that the run would ship; held-out loss is measured on them."""
        raise _not_overridden("average")

    # After the step.
    def observe(self, stats: StepStats, state: State) -> None:
        """Learn from the finished step."""
        raise _not_overridden("observe")

    def metrics(self, state: State) -> Mapping[str, float]:
        """Numbers for this step's record, each under `<name>/<key>`."""
        raise _not_overridden("metrics")

    @classmethod
    def overrides(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(Intervention, hook)

    @classmethod
    def claims(cls) -> frozenset[str]:
        """The exclusive places that this method takes: those of the hooks it overrides."""
        return frozenset(place for hook, place in CLAIMED_BY_HOOK.items() if cls.overrides(hook))

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


def fresh_state(method: Intervention, num_groups: int, state: State | None) -> State:
    """`state`, or a fresh one with a generator seeded 0: what `group_weights` does with None."""
    return method.init_state(num_groups, torch.Generator().manual_seed(0)) if state is None else state


def _not_overridden(hook: str) -> NotImplementedError:
    return NotImplementedError(f"{hook} is a hook that this intervention does not override")
