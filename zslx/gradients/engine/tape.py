"""The backward of a measured pass: group gradients, handed over a parameter at a time.

    with Tape(model, parameters, sequences) as tape:
        losses = loss_fn(model, batch)
        tape.backward(losses, cotangent, grouping, receive)

The uses of a parameter (uses.py) are handed over together, once the last of them has its gradient. This makes tied
weights exact. A *slow* parameter is one whose gradients cannot be kept apart in a single backward. It takes one
backward for each group, on the same graph, which is right for every differentiable operation.

That the sequences lie along the first dimension and do not mix is checked. The first pass over a new combination of
model, batch size and uses runs 2·log₂ B more backwards, each of the losses of half of the sequences. A use that
receives a gradient outside of its half makes its parameter slow from then on. One case escapes the check: rows whose
order depends on the data, as with routed experts, and which were in order when the check was made. Exact; checked by
tests/oracles/test_gradients_modules.py.

Shapes: B sequences, T positions, N token rows of a sequence, K groups.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.engine.contributions import (
    Contribution,
    Dense,
    GroupGradients,
    Grouping,
    Product,
    Rows,
    matrix_shape,
)
from zslx.gradients.engine.sources import Source, Use
from zslx.gradients.engine.uses import Uses

Receive = Callable[[GroupGradients], None]


@dataclass(eq=False)
class Checked:
    """The outcome of the checks of one model: the combinations of uses seen, and every parameter found slow."""

    seen: set[tuple[Any, ...]] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)


_checked: weakref.WeakKeyDictionary[nn.Module, Checked] = weakref.WeakKeyDictionary()


class Tape(Uses):
    """The uses of `parameters` in a forward, and backwards through them."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sequences: int):
        super().__init__(parameters, sequences)
        self.model = model

    def backward(
        self,
        losses: Tensor,
        cotangent: Tensor,
        grouping: Grouping,
        receive: Receive,
        *,
        retain_graph: bool = False,
    ) -> None:
        """Group gradients of Σ cotangent·losses, both (B, T), to `receive`, a parameter as soon as it is whole.

        No parameter's `.grad` is touched. The graph may be used for several backwards.
        """
        self.examine(losses)
        self.grouping, self.receive = grouping, receive
        self.arrived: dict[str, GroupGradients] = {}
        self.awaited: dict[str, int] = {}
        for use in self.uses:
            for name in use.source.names:
                self.awaited[name] = self.awaited.get(name, 0) + 1
        self._run("collect", losses, cotangent, retain_graph or bool(self.slow))
        for name in [name for name in self.arrived if name not in self.slow]:
            self._hand_over(name)  # some uses had no part in the losses
        if self.slow:
            self._slow(losses, cotangent, retain_graph)
        del self.grouping, self.receive

    def _run(self, phase: str, losses: Tensor, cotangent: Tensor, retain: bool, names: Iterable[str] = ()) -> Any:
        self.phase = phase
        inputs = [self.parameters[name] for name in names] or list(self.parameters.values())
        try:
            with contextlib.ExitStack() as stack:
                if torch.is_autocast_enabled(losses.device.type):
                    stack.enter_context(torch.autocast(losses.device.type, enabled=False))
                return _gradients(losses, cotangent, retain, tuple(inputs))
        except RuntimeError as error:
            if "use_reentrant=True" in str(error):
                raise ValueError("activation checkpointing: set use_reentrant=False") from error
            raise
        finally:
            self.phase = "idle"

    def examine(self, losses: Tensor) -> None:
        """Find what is slow, once the forward is done: by the operations seen, and, for uses not seen before, by
        backwards of some sequences."""
        if self.phase != "forward":
            return
        self.phase = "idle"
        if not losses.requires_grad:
            raise ValueError("the losses depend on no parameter that requires a gradient")
        if len(losses) == 1:
            return
        known = _checked.setdefault(self.model, Checked())
        uses = tuple(
            (use.what, use.layout, use.source.kind, use.source.names)
            for use in self.uses
            if not known.slow.issuperset(use.source.names)
        )
        signature = (len(losses), frozenset(self.parameters), uses)
        # The gradients of a loss that is not finite say nothing about the layout.
        if signature not in known.seen and bool(losses.isfinite().all()):
            known.slow |= self._check(losses)
            known.seen.add(signature)
        self.slow |= known.slow.intersection(self.parameters)

    def _check(self, losses: Tensor) -> set[str]:
        """Parameters to which the gradient of some sequences' losses comes otherwise than by those sequences' rows.

        Any two sequences are on different sides of one of the halves, so that no exchange is overlooked.
        """
        ids = torch.arange(len(losses), device=losses.device)
        slow: set[str] = set()
        for bit in range((len(losses) - 1).bit_length()):
            for side in (0, 1):
                self.probed = (ids >> bit) % 2 == side
                cotangent = self.probed.to(losses.dtype).view(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
                gradients = self._run("check", losses, cotangent, True)
                slow.update(name for name, g in zip(self.parameters, gradients, strict=True) if g is not None)
        return slow.union(*(use.source.names for use in self.uses if use.failed))

    def _slow(self, losses: Tensor, cotangent: Tensor, retain_graph: bool) -> None:
        """One backward a group for the parameters that need it."""
        names = sorted(self.slow)
        found: dict[str, list[Tensor | None]] = {name: [] for name in names}
        for k in range(self.grouping.count):
            member = (self.grouping.ids == k).to(cotangent.dtype).view(-1, *[1] * (cotangent.ndim - 1))
            last = k == self.grouping.count - 1
            gradients = self._run("plain", losses, cotangent * member, retain_graph or not last, names)
            for name, gradient in zip(names, gradients, strict=True):
                found[name].append(gradient)
        for name in names:
            p, rows = self.parameters[name], found.pop(name)
            if any(g is not None for g in rows):
                dense = [torch.zeros_like(p) if g is None else g.to_dense() for g in rows]
                use = Dense(torch.stack(dense).view(len(dense), *matrix_shape(p)))
                self.receive(GroupGradients(name, len(dense), p, [use]))

    def _hand_over(self, name: str) -> None:
        self.receive(self.arrived.pop(name))

    def arrive(self, name: str, contribution: Contribution) -> None:
        if name in self.slow or name not in self.parameters:
            return
        if name not in self.arrived:
            self.arrived[name] = GroupGradients(name, self.grouping.count, self.parameters[name])
        self.arrived[name].uses.append(contribution)
        self.awaited[name] -= 1
        if not self.awaited[name]:
            self._hand_over(name)

    def wants(self, use: Use | None) -> bool:
        """Whether the gradient of a use goes to our own collection (else to autograd, or nowhere)."""
        return use is not None and self.phase == "collect" and not self.slow.issuperset(use.source.names)

    def passes(self, use: Use | None) -> bool:
        """Whether autograd shall carry the gradient on to the source, as if the tape were not there."""
        return self.phase == "plain" or use is None

    def check(self, use: Use | None, gradient: Tensor) -> None:
        """Note a use that receives a gradient of some sequences' losses outside of them. gradient (B, ...)."""
        if use is not None and self.phase == "check":
            use.failed |= bool(gradient[~self.probed].any())

    def collect_product(self, use: Use, delta: Tensor, x: Tensor, transposed: bool) -> None:
        """delta (B, N, out), x (B, N, in) of y = x Wᵀ (or x W)."""
        product = Product.make(delta, x, self.grouping)
        if transposed:
            product = product.transposed
        source = use.source
        if source.kind == "parameter":
            self.arrive(source.names[0], product)
        elif source.kind == "transposed":
            self.arrive(source.names[0], product.transposed)
        else:
            out = delta.new_empty(self.grouping.count, *source.tensor.shape)
            product.write(out, 0)
            self._pull_back(source, out)

    def collect_dense(self, use: Use, gradient: Tensor) -> None:
        """gradient (B, *shape of the source)."""
        source, grouping = use.source, self.grouping
        if source.kind == "rows":
            assert source.index is not None
            index = source.index.reshape(1, -1).expand(len(gradient), -1)
            value = gradient.reshape(*index.shape, gradient.shape[-1])
            self.arrive(source.names[0], Rows.make(index, value, grouping))
        elif source.kind == "parameter":
            value = grouping.sum(gradient).reshape(grouping.count, *matrix_shape(source.tensor))
            self.arrive(source.names[0], Dense(value))
        else:
            self._pull_back(source, grouping.sum(gradient))

    def _pull_back(self, source: Source, gradient: Tensor) -> None:
        """From group gradients (K, ...) of a batchless tensor to those of the parameters that it came from."""
        inputs = tuple(self.parameters[name] for name in source.names)
        with torch.enable_grad(), torch._C._EnableTorchFunction():  # as in _run: a recomputed forward must be seen
            per_group = [_gradients(source.tensor, g.to(source.tensor.dtype), True, inputs) for g in gradient]
        for name, rows in zip(source.names, zip(*per_group, strict=True), strict=True):
            p = self.parameters[name]
            dense = torch.stack([torch.zeros_like(p) if g is None else g for g in rows])
            self.arrive(name, Dense(dense.view(len(rows), *matrix_shape(p))))


def _gradients(of: Tensor, cotangent: Tensor, retain: bool, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """What torch.autograd.grad calls; that function itself would take the tape off while it runs, and activation
    checkpointing recomputes the forward meanwhile, which must take the same ways again."""
    found: tuple[Tensor | None, ...] = torch.autograd.Variable._execution_engine.run_backward(
        (of,), (cotangent,), retain, False, inputs, allow_unreachable=True, accumulate_grad=False
    )
    return found
