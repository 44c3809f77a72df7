"""The arguments of every measurement: parameters, batch, losses, their weights in the mean, and groups.

Shapes: B sequences, T positions, N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LossFn = Callable[[nn.Module, Any], Any]
# (ids, K), or a function from the detached losses (B, T) to them.
Groups = tuple[Tensor, int] | Callable[[Tensor], tuple[Tensor, int]]
Selection = Iterable[str] | Callable[[str, Tensor], bool] | None


def choose(model: nn.Module, parameters: Selection) -> dict[str, Tensor]:
    """The parameters by name, a shared one under its first name."""
    if type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
        raise ValueError(f"model: {type(model).__name__} is not supported, pass the module inside it")
    trainable: dict[str, Tensor] = {
        name.replace("_orig_mod.", ""): p for name, p in model.named_parameters() if p.requires_grad
    }
    if parameters is None:
        chosen = dict(trainable)
    elif callable(parameters):
        chosen = {name: p for name, p in trainable.items() if parameters(name, p)}
    else:
        names = list(parameters)
        if unknown := [name for name in names if name not in trainable]:
            raise ValueError(f"parameters: {', '.join(unknown)} not among the model's trainable parameters")
        chosen = {name: trainable[name] for name in names}
    if not chosen:
        raise ValueError("parameters: none is left that requires a gradient")
    return chosen


def batch_size(batch: Any) -> int:
    """B: the first dimension of the first tensor in the batch."""
    first = next((t for t in tensors(batch) if t.ndim), None)
    if first is None:
        raise ValueError(f"batch: no tensor with a batch dimension in a {type(batch).__name__}")
    return first.shape[0]


def tensors(value: Any) -> Iterable[Tensor]:
    """The tensors of a batch: itself, or those in a tuple, list, mapping or object with attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def take(batch: Any, index: Tensor) -> Any:
    """The sequences `index` of a batch: of each tensor in it that has a batch dimension."""
    if isinstance(batch, Tensor):
        return batch[index.to(batch.device)] if batch.ndim else batch
    if isinstance(batch, (list, tuple)):
        return type(batch)([take(item, index) for item in batch])
    if isinstance(batch, Mapping):
        return {key: take(value, index) for key, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{key: take(value, index) for key, value in vars(batch).items()})
    return batch


def split(result: Any) -> tuple[Tensor, Tensor | None]:
    """Losses (B, T) and mask (B, T) or None of what a loss function returned."""
    losses, mask = result if isinstance(result, tuple) else (result, None)
    if not isinstance(losses, Tensor) or losses.ndim != 2:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss_fn: must return losses (B, T) or (losses, mask), got {shape}")
    if mask is not None and mask.shape != losses.shape:
        raise ValueError(f"loss_fn: mask {tuple(mask.shape)} and losses {tuple(losses.shape)} differ in shape")
    return losses, mask


def cotangent_of(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, float]:
    """∂L/∂losses (B, T) and the number of tokens N."""
    if mask is None:
        tokens = float(losses.numel())
        return torch.full_like(losses, 1 / tokens), tokens
    tokens = float(mask.sum())
    if not tokens:
        raise ValueError("loss_fn: the mask leaves no token")
    return mask.to(losses.dtype) / tokens, tokens


def check_groups(groups: Any, *shapes: tuple[int, ...]) -> tuple[Tensor, int]:
    """(ids, K) as they are, or ValueError: the ids must be whole numbers in 0..K−1, of one of the given shapes."""
    if not (isinstance(groups, tuple) and len(groups) == 2 and isinstance(groups[0], Tensor)):
        raise ValueError("groups: expected (ids, K), the group of each sequence or token and the number of groups")
    ids, count = groups
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"groups: the number of groups must be a whole number above 0, got {count!r}")
    if tuple(ids.shape) not in shapes or ids.is_floating_point():
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"groups: ids must be whole numbers of shape {wanted}, got {ids.dtype} {tuple(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"groups: ids must lie in 0..{count - 1} (K={count})")
    return ids, int(count)


def random_signs(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """count signs ±1."""
    draw = torch.randint(2, (count,), generator=generator, device=generator.device)
    return (draw * 2 - 1).to(like.device, torch.promote_types(like.dtype, torch.float32))
