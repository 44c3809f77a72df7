"""A model beside itself whose layers give the gradient of each sequence, in a form that torch.compile takes.

Each parameter has a *tap*: zeros, of which every sequence has its own, added to what the layer computes. The gradient
of the tap, from one ordinary backward, is the parameter's gradient by sequence. The forward is that of the model, and a
tap takes no memory. A linear layer's tap is (B, out, in), its gradient one product a sequence. An embedding's is
(B, T, D); its rows are added up by token afterwards.

The tape (engine/tape.py) does the same for any module by watching its operations, which a compiler cannot do. Exact in
the arithmetic of the model. Checked by tests/oracles/test_tapped_model.py.

Shapes: B sequences, T positions, D width, V rows of a table, K groups, n numbers of a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslx.gradients.engine.contributions import Grouping
from zslx.gradients.engine.loss_batch import Groups, LossFn, choose, cotangent_of, split, tensors
from zslx.gradients.sequence_groups import GroupStats, add_up

CHUNKS = 256  # products of which a Gramian is the sum: a single one of so few rows would leave a GPU idle
ELEMENTWISE = ("sum", "abs_sum", "sign_sum")


class TappedModel:
    """Gradients by sequence of a model made of linear layers, embeddings and norms.

    dtype: that of the matrix products under autocast; None: the model's own. ValueError, naming the module, where
    another one has parameters.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None, compiled: bool = False):
        self.parameters = choose(model, None)
        self.dtype = dtype or next(iter(self.parameters.values())).dtype
        self.layers: list[Tapped] = []
        self.model = self._twin(model, "the model")
        compile_: Callable[[Any], Any] = torch.compile if compiled else lambda work: work
        self.coordinate_sums, self.weighted_sums = compile_(coordinate_sums), compile_(weighted_sums)

    def _twin(self, module: nn.Module, path: str) -> nn.Module:
        if type(module) in TAPPED:
            self.layers.append(TAPPED[type(module)](module))
            return self.layers[-1]
        if next(module.parameters(recurse=False), None) is not None:
            raise ValueError(f"{path}: a {type(module).__name__} has parameters of its own, which no tap can reach")
        twin = copy.copy(module)
        twin._modules = {name: child and self._twin(child, name) for name, child in module._modules.items()}
        return twin

    def nbytes(self, sequences: int) -> int:
        """Memory that the gradients of so many sequences take, which are all there at a time."""
        return sequences * self.dtype.itemsize * sum(p.numel() for p in self.parameters.values())

    def stats(
        self, loss_fn: LossFn, batch: Any, *, groups: Groups | None = None, want: Iterable[str], keep: bool = False
    ) -> GroupStats:
        """As `sequence_stats` of the model; want: of gramian, sum, abs_sum, sign_sum."""
        first = next(t for t in tensors(batch) if t.ndim)
        for layer in self.layers:
            layer.open(first.shape[0], first.shape[1], self.dtype)
        losses, mask = split(loss_fn(self.model, batch))
        cotangent, tokens = cotangent_of(losses, mask)
        grouping = Grouping.make(groups(losses.detach()) if callable(groups) else groups, len(losses), losses.device)
        gradients = self._gradients(losses, cotangent)
        if not grouping.singles or grouping.order is not None:
            gradients = {name: grouping.sum(gradient) for name, gradient in gradients.items()}
        sums: dict[str, dict[str, Tensor]] = {what: {} for what in ELEMENTWISE}
        wanted = [what for what in ELEMENTWISE if what in want]
        for name, found in zip(gradients, self.coordinate_sums(list(gradients.values()), wanted), strict=True):
            for what, total in zip(wanted, found, strict=True):
                sums[what][name] = total.view_as(self.parameters[name])

        def combine(weights: Tensor) -> Mapping[str, Tensor]:
            found = self.weighted_sums(list(gradients.values()), weights)
            return {name: g.view_as(self.parameters[name]) for name, g in zip(gradients, found, strict=True)}

        return GroupStats(
            losses=losses.detach(),
            group_losses=grouping.sum((losses.detach() * cotangent).sum(1)),
            num_tokens=tokens,
            sum=sums["sum"],
            abs_sum=sums["abs_sum"],
            sign_sum=sums["sign_sum"],
            gramian=add_up(map(gramian_of, gradients.values())) if "gramian" in want else None,
            kept_bytes=sum(g.nbytes for g in gradients.values()) if keep else 0,
            _combine=combine if keep else None,
            _parameters=self.parameters,
        )

    def _gradients(self, losses: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """By parameter (B, n): the gradients of Σ cotangent·losses, both (B, T), of each sequence."""
        taps = [tap for layer in self.layers for tap in layer.taps.values()]
        every = iter(torch.autograd.grad(losses, taps, cotangent, materialize_grads=True))
        by_layer = [(layer, {part: next(every) for part in layer.taps}) for layer in self.layers]
        names = {id(p): name for name, p in self.parameters.items()}
        found: dict[str, Tensor] = {}
        # Tables last: the rows of a tied one are added to what its linear layer gave.
        for layer, parts in sorted(by_layer, key=lambda pair: isinstance(pair[0], TappedEmbedding)):
            for part, gradient in parts.items():
                name = names[id(getattr(layer, part))]
                found[name] = layer.add(part, gradient, found.get(name))
        return {name: found[name].flatten(1) for name in self.parameters}


class Tapped(nn.Module):
    """A layer with its parameters, by the names of their attributes, and a tap for each."""

    product = False  # whether it is a matrix product, whose taps have the products' type

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.taps: dict[str, Tensor] = {}
        self.weight: nn.Parameter
        self.bias: nn.Parameter | None
        for name in ("weight", "bias"):
            setattr(self, name, getattr(layer, name, None))

    def open(self, sequences: int, positions: int, dtype: torch.dtype) -> None:
        """Make the taps for a batch of this shape; `dtype` is that of matrix products."""
        for part in ("weight", "bias"):
            if (p := getattr(self, part)) is not None:
                self.taps[part] = tap(p, dtype if self.product else p.dtype, sequences, *p.shape)

    def add(self, part: str, gradient: Tensor, found: Tensor | None) -> Tensor:
        """The gradient of a parameter by sequence, from that of its tap and what other layers found of it."""
        return gradient if found is None else found.add_(gradient)


def tap(p: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros((), dtype=dtype, device=p.device).expand(shape).requires_grad_()


class TappedLinear(Tapped):
    product = True

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"a linear layer with a tap takes (B, T, in), got {tuple(x.shape)}")
        dtype = self.taps["weight"].dtype
        y: Tensor = Product.apply(x.to(dtype), self.weight.detach().to(dtype), self.taps["weight"])
        return y if self.bias is None else y + self.bias.detach().to(dtype) + self.taps["bias"][:, None]


class Product(torch.autograd.Function):
    """x Wᵀ of x (B, T, in) and W (out, in). The gradient of the tap (B, out, in) is that of W by sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, tap: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight, None, torch.bmm(g.mT, x)


class TappedEmbedding(Tapped):
    def open(self, sequences: int, positions: int, dtype: torch.dtype) -> None:
        self.taps["weight"] = tap(self.weight, self.weight.dtype, sequences, positions, self.weight.shape[1])
        self.dtype = dtype
        self.ids: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.ids is not None:
            raise ValueError("an embedding with a tap is looked up once in a pass")
        x = F.embedding(ids, self.weight.detach())
        self.ids = ids
        return x + self.taps["weight"][:, : ids.shape[-1]]

    def add(self, part: str, gradient: Tensor, found: Tensor | None) -> Tensor:
        """Add the rows (B, T, D) to the tables (B, V, D)."""
        assert self.ids is not None
        gradient = gradient[:, : self.ids.shape[-1]]  # of a batch whose tensor is longer than what the model is given
        B, T, D = gradient.shape
        ids = self.ids.expand(B, T)
        if found is None:
            found = gradient.new_zeros(B, *self.weight.shape, dtype=self.dtype)
        # A token's rows are added up in their own type, and rounded once: its first row has the total, the others zero.
        same = ids[:, :, None] == ids[:, None, :]
        first = ~same.tril(-1).any(-1, keepdim=True)
        totals = torch.bmm(same.to(gradient.dtype), gradient) * first
        at = ids + len(self.weight) * torch.arange(B, device=ids.device)[:, None]
        found.view(-1, D).index_add_(0, at.flatten(), totals.flatten(0, 1).to(found.dtype))
        return found


class TappedNorm(Tapped):
    def __init__(self, layer: nn.RMSNorm | nn.LayerNorm):
        super().__init__(layer)
        self.shape, self.eps, self.rms = layer.normalized_shape, layer.eps, isinstance(layer, nn.RMSNorm)

    def forward(self, x: Tensor) -> Tensor:
        shape, between = list(self.shape), (slice(None), *[None] * (x.ndim - 2))  # the sequences come first
        y = F.rms_norm(x, shape, None, self.eps) if self.rms else F.layer_norm(x, shape, eps=self.eps)  # type: ignore[arg-type]
        if self.weight is not None:
            y = y * (self.weight.detach() + self.taps["weight"][between])
        if self.bias is not None:
            y = y + (self.bias.detach() + self.taps["bias"][between])
        return y


TAPPED: dict[type[nn.Module], Callable[[Any], Tapped]] = {
    nn.Linear: TappedLinear,
    nn.Embedding: TappedEmbedding,
    nn.RMSNorm: TappedNorm,
    nn.LayerNorm: TappedNorm,
}


def gramian_of(gradients: Tensor) -> Tensor:
    """(K, K): inner products of gradients (K, n), added up in float32 at least."""
    chunks = max((c for c in range(1, CHUNKS + 1) if gradients.shape[1] % c == 0), default=1)
    parts = gradients.unflatten(1, (chunks, -1)).transpose(0, 1)
    wide = torch.promote_types(gradients.dtype, torch.float32)
    if gradients.device.type == "cuda" and gradients.dtype != wide:
        return torch.bmm(parts, parts.mT, out_dtype=wide).sum(0)
    parts = parts.to(wide)
    return (parts @ parts.mT).sum(0)


def coordinate_sums(gradients: Sequence[Tensor], want: Sequence[str]) -> list[list[Tensor]]:
    """By parameter: sums over its gradients (K, n), of what is wanted, in float32 at least."""
    terms = {"sum": lambda g: g, "abs_sum": torch.abs, "sign_sum": torch.sign}
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    return [[terms[what](g.to(wide)).sum(0) for what in want] for g in gradients]


def weighted_sums(gradients: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """By parameter: Σ_k w_k g_k of its gradients (K, n), in float32 at least."""
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    return [(weights.to(wide)[:, None] * g.to(wide)).sum(0) for g in gradients]
