"""Group gradients of one batch: sequences (one backward) and groups of tokens (one backward a group).

    g_k = ∇ (Σ_{i∈k} ℓ_i) / N        N tokens of the batch, so that Σ_k g_k = ∇L

`sequence_stats` needs one forward and one backward for any number of groups of sequences: at each parameter the
weight gradient is the same product as ever, kept apart by sequence, used and dropped. A group of tokens
crosses sequences and what a token does to the gradient depends on all later tokens, so `token_group_stats`
runs one backward a group on one graph; its `proxy` takes the Gramian of the unembedding alone, whose K
gradients need no backward through the model at all, and folds the weights into the token losses.

Exact in the arithmetic of the model (proxy apart). Checked by tests/oracles/test_gradients.py.
Shapes: B sequences, T positions, K groups, P parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.contributions import Dense, GroupGradients, Grouping, Product, matrix_shape
from zslx.gradients.reduction import Reduction
from zslx.gradients.tape import LastLinear, Tape

LossFn = Callable[[nn.Module, Any], Any]
Selection = Iterable[str] | Callable[[str, Tensor], bool] | None
DEFAULT_WANT = ("sum", "abs_sum", "sign_sum", "norms", "gramian")


@dataclass(frozen=True, kw_only=True)
class GroupStats:
    """What was taken from the K group gradients of a batch. Everything is detached.

    losses (B, T) nats per token; group_losses (K,) = Σ_{i∈k} ℓ_i / N; num_tokens N;
    sum, abs_sum, sign_sum, chance_sum: parameter name to tensor of the parameter's shape (empty where not
    asked for); gramian (K, K), norms (K,), and by parameter gramians, norms_by_parameter, l1 (K,);
    slow: parameters that took one backward a group. A parameter without a gradient is in no mapping.
    """

    losses: Tensor
    group_losses: Tensor
    num_tokens: float
    num_groups: int
    sum: Mapping[str, Tensor]
    abs_sum: Mapping[str, Tensor]
    sign_sum: Mapping[str, Tensor]
    chance_sum: Mapping[str, Tensor]
    l1: Mapping[str, Tensor]
    gramian: Tensor | None
    norms: Tensor | None
    gramians: Mapping[str, Tensor]
    norms_by_parameter: Mapping[str, Tensor]
    slow: tuple[str, ...] = ()
    kept_bytes: int = 0
    _combine: Callable[[Tensor], Mapping[str, Tensor]] | None = field(default=None, repr=False)
    _parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def combined(self, weights: Tensor) -> Mapping[str, Tensor]:
        """Σ_k w_k g_k by parameter name, weights (K,)."""
        if self._combine is None:
            raise ValueError("combine: the group gradients were not kept (keep=True)")
        if weights.shape != (self.num_groups,):
            raise ValueError(f"combine: weights of shape {tuple(weights.shape)}, expected ({self.num_groups},)")
        return self._combine(weights.detach().to(self.losses.device))

    @torch.no_grad()
    def combine(self, weights: Tensor) -> None:
        """Add Σ_k w_k g_k to each parameter's `.grad`, as a backward would (set it where there is none)."""
        for name, gradient in self.combined(weights).items():
            p = self._parameters[name]
            if p.grad is None:
                p.grad = gradient.to(p.dtype)
            else:
                p.grad += gradient


def sequence_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    groups: tuple[Tensor, int] | Callable[[Tensor], tuple[Tensor, int]] | None = None,
    parameters: Selection = None,
    want: Iterable[str] = DEFAULT_WANT,
    keep: bool = False,
    memory_budget: int | None = None,
    chance: torch.Generator | None = None,
) -> GroupStats:
    """Statistics of the gradients of each sequence, or of groups of sequences, in one forward and one backward.

    loss_fn(model, batch) returns losses (B, T) in nats per token, or (losses, mask (B, T)): then tokens outside
    the mask count for nothing, N included. The losses may be multiplied by detached weights.
    groups: ids (B,) and K, or a function from the detached losses (B, T) to them, called between forward and
    backward; default every sequence by itself. parameters: names, or a predicate of (name,
    parameter), default all that require a gradient. want: of sum, abs_sum, sign_sum, norms, gramian, l1.
    keep: for `combine`; K·P numbers where `memory_budget` (bytes) allows, beyond it activations and output
    gradients from which the combination is computed with one more matrix product a layer.
    chance: a generator for the random signs of `chance_sum`.
    The `.grad` of the parameters and every generator stay as they are.
    """
    chosen = choose(model, parameters)
    with Tape(model, chosen, batch_size(batch)) as tape:
        losses, mask = split(loss_fn(model, batch))
        if len(losses) != tape.sequences:
            raise ValueError(f"loss_fn: losses of {len(losses)} sequences for a batch of {tape.sequences}")
        cotangent, tokens = cotangent_of(losses, mask)
        groups = groups(losses.detach()) if callable(groups) else groups
        grouping = Grouping.make(groups, len(losses), losses.device)
        reduction = Reduction(
            want=frozenset(want),
            signs=None if chance is None else random_signs(grouping.count, chance, losses),
            keep=keep,
            memory_budget=memory_budget,
        )
        tape.backward(losses, cotangent, grouping, reduction.receive)
        slow = tuple(sorted(tape.slow))
    share = grouping.sum((losses.detach() * cotangent).sum(1))
    return collect(reduction, chosen, losses, share, tokens, slow=slow)


def token_group_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    ids: Tensor | Callable[[Tensor], Tensor],
    K: int,
    *,
    parameters: Selection = None,
    want: Iterable[str] = DEFAULT_WANT,
    keep: bool = False,
    proxy: bool = False,
    chance: torch.Generator | None = None,
) -> GroupStats:
    """Statistics of the gradients of K groups of tokens: ids (B, T) with values below K, or a function from the
    detached losses (B, T) to them, called after the forward.

    One forward and one backward a group; with `keep` the K·P numbers stay for `combine`.
    proxy: the Gramian is that of the unembedding alone (the last linear layer of the forward), which needs no
    backward through the model; `combine` then runs the one backward, of the losses weighted by w[ids]. Cheap, and
    not exact: its cosines follow the true ones, without their guarantees. want: norms and gramian only.
    """
    chosen = choose(model, parameters)
    if proxy:
        return _proxy_stats(model, loss_fn, batch, ids, K, chosen, frozenset(want), chance)
    losses, mask = split(loss_fn(model, batch))
    cotangent, tokens = cotangent_of(losses, mask)
    ids = check_token_ids(ids, K, losses)
    signs = None if chance is None else random_signs(K, chance, losses)
    reduction = Reduction(want=frozenset(want), signs=signs, keep=keep)
    rows: list[tuple[Tensor, ...]] = []
    for k in range(K):
        part = cotangent * (ids == k)
        rows.append(torch.autograd.grad(losses, list(chosen.values()), part, retain_graph=k < K - 1, allow_unused=True))
    for (name, p), column in zip(chosen.items(), zip(*rows, strict=True), strict=True):
        if any(g is not None for g in column):
            filled = [torch.zeros_like(p) if g is None else g for g in column]
            use = Dense(torch.stack(filled).view(K, *matrix_shape(p)))
            reduction.receive(GroupGradients(name, K, p, [use]))
    return collect(reduction, chosen, losses, token_shares(losses, cotangent, ids, K), tokens)


def _proxy_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    ids: Tensor | Callable[[Tensor], Tensor],
    K: int,
    chosen: dict[str, Tensor],
    want: frozenset[str],
    chance: torch.Generator | None,
) -> GroupStats:
    if unknown := want - {"norms", "gramian"}:
        raise ValueError(f"want: the proxy has no {', '.join(sorted(unknown))}; allowed are norms, gramian")
    if chance is not None:
        raise ValueError("chance: the proxy has no chance level")
    with LastLinear(model) as last:
        losses, mask = split(loss_fn(model, batch))
    cotangent, tokens = cotangent_of(losses, mask)
    ids = check_token_ids(ids, K, losses)
    if last.found is None:
        raise ValueError("proxy: the forward has no linear layer whose weight is a parameter")
    name, weight, x, out = last.found
    (delta,) = torch.autograd.grad(losses, out, cotangent, retain_graph=True)
    count = losses.numel()
    if delta.numel() != count * delta.shape[-1]:
        raise ValueError(f"proxy: {name} is not applied once a token, it cannot be the unembedding")
    grouping = Grouping.make((ids.flatten(), K), count, losses.device)
    product = Product.make(delta.reshape(count, 1, -1), x.detach().reshape(count, 1, -1), grouping)
    reduction = Reduction(want=want)
    reduction.receive(GroupGradients(name, K, weight, [product]))

    def combine(weights: Tensor) -> Mapping[str, Tensor]:
        scaled = cotangent * weights.to(losses.dtype)[ids]
        gradients = torch.autograd.grad(losses, list(chosen.values()), scaled, allow_unused=True)
        return {name: g for name, g in zip(chosen, gradients, strict=True) if g is not None}

    shares = token_shares(losses, cotangent, ids, K)
    return collect(reduction, chosen, losses, shares, tokens, combine=combine)


def check_token_ids(ids: Tensor | Callable[[Tensor], Tensor], K: int, losses: Tensor) -> Tensor:
    ids = ids(losses.detach()) if callable(ids) else ids
    if ids.shape != losses.shape or ids.is_floating_point():
        raise ValueError(f"ids: shape {tuple(ids.shape)}, expected whole numbers {tuple(losses.shape)} (B, T)")
    if K < 1 or not 0 <= int(ids.min()) <= int(ids.max()) < K:
        raise ValueError(f"ids: must lie in 0..{K - 1} (K={K})")
    return ids.to(losses.device)


def token_shares(losses: Tensor, cotangent: Tensor, ids: Tensor, K: int) -> Tensor:
    """(K,) share of each group in the batch loss."""
    share = (losses.detach() * cotangent).flatten()
    return share.new_zeros(K).index_add_(0, ids.flatten(), share)


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


def random_signs(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """count signs ±1."""
    draw = torch.randint(2, (count,), generator=generator, device=generator.device)
    return (draw * 2 - 1).to(like.device, torch.promote_types(like.dtype, torch.float32))


def collect(
    reduction: Reduction,
    parameters: Mapping[str, Tensor],
    losses: Tensor,
    share: Tensor,
    tokens: float,
    *,
    slow: tuple[str, ...] = (),
    combine: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
) -> GroupStats:
    """Totals over parameters, and everything in one frozen record."""
    gramian = add_up(reduction.gramians.values())
    squares = {name: g.diagonal() for name, g in reduction.gramians.items()} | reduction.squares
    total = add_up(squares.values())
    kept = reduction.kept
    if combine is None and reduction.keep:

        def combine(weights: Tensor) -> Mapping[str, Tensor]:
            return {name: weighted(g, weights, parameters[name]) for name, g in kept.items()}

    return GroupStats(
        losses=losses.detach(),
        group_losses=share,
        num_tokens=tokens,
        num_groups=len(share),
        sum=reduction.sum,
        abs_sum=reduction.abs_sum,
        sign_sum=reduction.sign_sum,
        chance_sum=reduction.chance_sum,
        l1=reduction.l1,
        gramian=gramian,
        norms=None if total is None else total.clamp_min(0).sqrt(),
        gramians=reduction.gramians,
        norms_by_parameter={name: square.clamp_min(0).sqrt() for name, square in squares.items()},
        slow=slow,
        kept_bytes=reduction.kept_bytes,
        _combine=combine,
        _parameters=parameters,
    )


def weighted(g: Tensor | GroupGradients, weights: Tensor, like: Tensor) -> Tensor:
    """Σ_k w_k g_k of one parameter."""
    if isinstance(g, GroupGradients):
        return g.combine(weights)
    return (weights.to(g.dtype) @ g.flatten(1)).view(like.shape)


def add_up(terms: Iterable[Tensor]) -> Tensor | None:
    total: Tensor | None = None
    for term in terms:
        total = term.clone() if total is None else total.add_(term)
    return total
