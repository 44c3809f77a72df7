"""The hooks in one table: which are exclusive, and what each may return.

A check takes what the hook returned, the method, the run's view and the hook's own arguments. It gives the value in
the form that the trainer uses, or raises ValueError with what is wrong; composed.py adds method, hook and step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zslx.gradients.engine.loss_batch import check_groups
from zslx.intervention.base import NEEDS, Intervention, RunView, StepView
from zslx.intervention.gradient_method import SUMS, CoordinateSums, GradientMethod
from zslx.intervention.placebo import KINDS


@dataclass(frozen=True)
class Hook:
    """`place`: the exclusive place that a method takes by implementing the hook, empty where several may."""

    check: Callable[..., Any]
    place: str = ""


def number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is no finite number")
    return found


def layers(given: Any, method: Intervention, run: RunView) -> int:
    """A layer that is in use stays so: to leave it out would change the function."""
    low, high = max(1, run.depth), run.config.model.n_layers
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or not low <= given <= high:
        raise ValueError(
            f"must return a whole number from {low} (the layers in use) to model.n_layers={high}, got {given!r}"
        )
    return int(given)


def shares(given: Any, method: Intervention, run: RunView) -> list[float] | None:
    if given is None:
        return None
    count = len(run.domains)
    if not isinstance(given, Iterable):
        raise ValueError(f"must return {count} shares, got {given!r}")
    found = [number(s) for s in given]
    if len(found) != count or min(found) < 0 or not sum(found) > 0:
        raise ValueError(f"must return {count} shares, none negative, with a positive total, got {found}")
    return found


def length(given: Any, method: Intervention, run: RunView) -> int | None:
    """The largest divisor of the full length that is not above what was asked for."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or not 1 <= given <= run.seq_len:
        raise ValueError(f"must return None or a whole number from 1 to data.seq_len={run.seq_len}, got {given!r}")
    return next(n for n in range(int(given), 0, -1) if run.seq_len % n == 0)


def windows_of_step(given: Any, method: Intervention, run: RunView) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
        raise ValueError(f"must return None or a whole number above 0, got {given!r}")
    return int(given)


def first_positions(given: Any, method: Intervention, run: RunView, tokens: Tensor) -> Tensor | None:
    """(B, T) on the device of the tokens."""
    if given is None:
        return None
    allowed = (tokens.shape, tokens.shape[1:])
    if not isinstance(given, Tensor) or given.shape not in allowed or given.is_floating_point():
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise ValueError(
            f"must return None or whole numbers of shape {' or '.join(str(tuple(s)) for s in allowed)}, got {got}"
        )
    found = given.to(tokens.device, torch.int64).expand(tokens.shape)
    if (found < 0).any() or (found > torch.arange(tokens.shape[1], device=tokens.device)).any():
        raise ValueError("each position must attend to itself at least: allowed are 0 to the position's own number")
    return found


def window_ids(given: Any, method: Intervention, run: RunView, walk: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, tuple) and len(given) == 2:
        domains, firsts = (np.asarray(part) for part in given)
        return sequence_starts(domains, firsts, run.seq_len // walk.length * len(walk.domains), walk)
    found = np.asarray(given)
    if found.shape != walk.domains.shape or found.dtype.kind not in "iu":
        raise ValueError(f"must return {len(walk.domains)} whole numbers, got {found.dtype} {found.shape}")
    if (found < 0).any() or (found >= walk.counts[walk.domains]).any():
        raise ValueError("each window must lie from 0 to its domain's number of windows - 1 (walk.counts)")
    return found.astype(np.int64)


def sequence_starts(domains: np.ndarray, firsts: np.ndarray, count: int, walk: Any) -> tuple[np.ndarray, np.ndarray]:
    for found in (domains, firsts):
        if found.shape != (count,) or found.dtype.kind not in "iu":
            raise ValueError(f"domains and first tokens must be {count} whole numbers, got {found.dtype} {found.shape}")
    sizes = np.array([len(stream) for stream in walk.streams])
    if (domains < 0).any() or (domains >= len(sizes)).any():
        raise ValueError(f"domains must lie from 0 to {len(sizes) - 1}")
    if (firsts < 0).any() or (firsts + walk.length >= sizes[domains]).any():
        raise ValueError(f"a sequence of {walk.length} tokens and the one that follows must lie in its domain's text")
    return domains.astype(np.int64), firsts.astype(np.int64)


def group_ids(given: Any, method: Intervention, run: RunView, view: StepView) -> tuple[Tensor, int]:
    return check_groups(given, tuple(view.losses.shape[:1]), tuple(view.losses.shape))


def factor(given: Any, method: Intervention, run: RunView) -> float:
    found = number(given)
    if found < 0:
        raise ValueError(f"the factor {found:g} is negative")
    return found


def optimizers(
    given: Any, method: Intervention, run: RunView, groups: list[dict[str, Any]]
) -> list[torch.optim.Optimizer]:
    """As a list; together they hold each parameter of the groups once."""
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    if not found or not all(isinstance(o, torch.optim.Optimizer) for o in found):
        names = ", ".join(type(o).__name__ for o in found)
        raise ValueError(f"must return a torch.optim.Optimizer or several, got {names or 'none'}")
    held = [id(p) for o in found for g in o.param_groups for p in g["params"]]
    wanted = {id(p) for g in groups for p in g["params"]}
    if sorted(held) != sorted(wanted):
        what = f"{len(wanted - set(held))} are missing, {len(held) - len(set(held))} held twice"
        raise ValueError(f"the optimizers must together hold each of the {len(wanted)} parameters once: {what}")
    return found


def averaged(given: Any, method: Intervention, run: RunView) -> Mapping[str, Tensor]:
    shapes = {n: p.shape for n, p in run.parameters.items()}
    if not isinstance(given, Mapping) or {n: getattr(t, "shape", None) for n, t in given.items()} != shapes:
        raise ValueError("must return a tensor of the same shape for every parameter")
    for name, tensor in given.items():
        if torch.isfinite(run.parameters[name]).all() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has entries that are not finite")
    return given


def token_weights(given: Any, method: Intervention, run: RunView, view: StepView) -> Tensor:
    """Detached, renormalised to mean 1 unless the method keeps its scale."""
    found = weights(given, view.losses.shape, view.losses)
    if (found < 0).any():
        raise ValueError("weights are negative")
    return found if method.keep_scale else found / found.mean()


def extra_loss(given: Any, method: Intervention, run: RunView, view: StepView) -> Tensor:
    if not isinstance(given, Tensor) or given.numel() != 1:
        raise ValueError("must return one scalar tensor")
    if not torch.isfinite(given):
        raise ValueError(f"the term is {float(given.detach())}")
    if given.detach() != 0 and not given.requires_grad:
        raise ValueError("the term has no gradient: build it on view.live_losses or view.logits")
    return given


def group_weights(
    given: Any, method: GradientMethod, run: RunView, gramian: Tensor, group_losses: Tensor
) -> Tensor | None:
    """(K,), or those of R runs (R, K)."""
    return None if given is None else weights(given, group_losses.shape, gramian, signed=method.signed, dim=-1)


def combined(given: Any, method: Intervention, run: RunView, sums: CoordinateSums) -> Tensor:
    if not isinstance(given, Tensor) or given.shape != sums.sum.shape:
        raise ValueError(f"must return a tensor of shape {tuple(sums.sum.shape)} for {sums.name}")
    if not torch.isfinite(given).all():
        raise ValueError(f"the gradient of {sums.name} has entries that are not finite")
    return given


def filtered(given: Any, method: Intervention, run: RunView, name: str, gradient: Tensor) -> Tensor:
    if not isinstance(given, Tensor) or given.shape != gradient.shape:
        raise ValueError(f"must return a tensor of shape {tuple(gradient.shape)} for {name}")
    if not torch.isfinite(given).all():
        raise ValueError(f"the gradient of {name} has entries that are not finite")
    return given.detach()


def metrics(given: Any, method: Intervention, run: RunView) -> dict[str, float]:
    """Under `<name>/<key>`; a number that is not finite is recorded as null."""
    if not isinstance(given, Mapping):
        raise ValueError(f"must return numbers by name, got {type(given).__name__}")
    found = {}
    for key, value in given.items():
        try:
            found[f"{method.name}/{key}"] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{key}={value!r} is no number") from None
    return found


def weights(given: Any, shape: torch.Size, like: Tensor, *, signed: bool = False, dim: int | None = None) -> Tensor:
    """Detached, in the dtype and on the device of `like`; ValueError if not of the shape, not finite, or without a
    positive total (`signed`: all zero), over a dimension or all."""
    if not isinstance(given, Tensor) or given.shape != shape:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"must return a tensor of shape {tuple(shape)}, got {got}")
    found = given.detach().to(like.device, like.dtype)
    if not torch.isfinite(found).all():
        raise ValueError("weights are not finite")
    total = (found.abs() if signed else found).sum(dim)
    wrong = total[~((total > 0) & (total < math.inf))]  # an infinite one would divide every weight to 0
    if len(wrong):
        raise ValueError(f"the total weight is {float(wrong[0]):g}, not positive and finite")
    return found


# In the order of the loop. Arguments are those after `run` and before `state`.
HOOKS: dict[str, Hook] = {
    "depth": Hook(layers, place="depth"),
    "mixture": Hook(shares, place="mixture"),
    "batch_size": Hook(windows_of_step, place="batch_size"),
    "sequence": Hook(length, place="sequence"),
    "windows": Hook(window_ids, place="windows"),
    "context": Hook(first_positions, place="context"),
    "token_weights": Hook(token_weights),
    "extra_loss": Hook(extra_loss),
    "group_ids": Hook(group_ids, place="gradient"),
    "group_weights": Hook(group_weights, place="gradient"),
    "combine": Hook(combined, place="gradient"),
    "filter": Hook(filtered, place="filter"),
    "lr_factor": Hook(factor),
    "optimizer": Hook(optimizers, place="optimizer"),
    "observe": Hook(lambda given, *_: None),
    "average": Hook(averaged, place="average"),
    "metrics": Hook(metrics),
}
GRADIENT_HOOKS = ("group_ids", "group_weights", "combine")
REMOVED = {
    "schedule": "write lr_factor(self, run, state), a factor on the configured schedule",
    "groups_tokens": "write the property by_token",
    "count_groups": "the number of groups comes from group_ids; init_groups(self, num_groups, generator) makes state",
}


def implemented(cls: type[Intervention]) -> list[str]:
    """The hooks that a class implements, in the order of the loop."""
    return [name for name in HOOKS if cls.overrides(name)]


def claims(cls: type[Intervention]) -> set[str]:
    """The exclusive places that a class takes."""
    return {HOOKS[name].place for name in implemented(cls)} - {""}


def examine_class(cls: type[Intervention]) -> None:
    """ValueError, one line that says what to change, for a class that the trainer cannot call as it is written."""
    for name, advice in REMOVED.items():
        if hasattr(cls, name):
            raise ValueError(f"intervention {cls.name!r}: {name} is no hook any more; {advice}")
    gradient = [name for name in GRADIENT_HOOKS if cls.overrides(name)]
    if gradient and not issubclass(cls, GradientMethod):
        raise ValueError(f"intervention {cls.name!r}: {gradient[0]} needs the base class zslx.GradientMethod")
    for name in (*implemented(cls), "init_state"):
        base = GradientMethod if name in GRADIENT_HOOKS else Intervention
        wanted = list(inspect.signature(getattr(base, name)).parameters)
        own = inspect.signature(getattr(cls, name))
        taken = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_POSITIONAL]
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in own.parameters.values()):
            continue
        if [p.name.lstrip("_") for p in taken] != wanted:
            raise ValueError(
                f"intervention {cls.name!r}: {name}({', '.join(p.name for p in taken)}) must be "
                f"{name}({', '.join(wanted)})"
            )
    allowed: tuple[tuple[str, Iterable[str], Iterable[str]], ...] = (
        ("needs", cls.needs, NEEDS),
        ("sums", getattr(cls, "sums", ()), SUMS),
        ("placebo", [cls.placebo] if cls.placebo is not None else [], KINDS),
    )
    for what, asked, known in allowed:
        if unknown := sorted(set(asked) - set(known)):
            raise ValueError(f"intervention {cls.name!r}: {what} has {unknown}; allowed are {', '.join(sorted(known))}")
