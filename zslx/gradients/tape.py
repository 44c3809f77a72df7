"""A forward pass that remembers where each parameter is used, and a backward that hands out group gradients.

Every operation of the forward that has a parameter among its arguments is seen (a torch function mode, so
modules, functional calls, tied weights and a module used twice are all the same thing) and takes one of three
ways:

    product      linear, matmul, addmm, embedding: a node of our own whose backward keeps output gradient and
                 input apart per sequence instead of multiplying them for the whole batch
    broadcast    add, mul, ... and the affine part of norms: the parameter is handed to the operation as B views
                 of itself, so that autograd's own backward leaves one gradient a sequence
    batchless    anything computed from parameters alone (a cast, a transpose, a position table's rows): runs
                 untouched; where its result meets the batch, one of the two ways above applies, and the
                 gradients of the sequences are pulled back to the parameters one by one

A parameter that meets the batch in any other operation is *slow*: its gradients come from one backward for each
group on the kept graph, which is right for every differentiable operation. The parameter's uses are
handed over together, when the last of them has come in.

Whether the sequences really lie along the first dimension (and do not mix) is not assumed: the first pass over
a new combination of model and uses runs one more backward, of one sequence alone, and what receives a
gradient outside that sequence is slow from then on. What that leaves open: a layout that changes with the data from
call to call while its shapes do not.

Shapes: B sequences, T positions, N token rows of a sequence, K groups.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zslx.gradients.contributions import (
    Contribution,
    Dense,
    GroupGradients,
    Grouping,
    Product,
    Rows,
    matrix_shape,
)

Receive = Callable[[GroupGradients], None]

LINEAR = {F.linear}
ADDMM = {torch.addmm, Tensor.addmm}
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}
NORMS = {F.layer_norm, F.rms_norm}
_ELEMENTWISE = (
    "add sub mul div true_divide rsub where maximum minimum pow lerp addcmul addcdiv "
    "add_ sub_ mul_ div_ true_divide_ pow_ lerp_ addcmul_ addcdiv_ "
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
    "__truediv__ __rtruediv__ __itruediv__ __pow__ __rpow__"
)
BROADCAST = {
    getattr(owner, name) for owner in (torch, Tensor) for name in str.split(_ELEMENTWISE) if hasattr(owner, name)
}


@dataclass(eq=False)
class Source:
    """A tensor without batch dimension that stems from parameters: one of them, or computed from them alone."""

    tensor: Tensor
    names: tuple[str, ...]
    kind: str  # parameter | transposed | rows | graph
    index: Tensor | None = None  # of `rows`: which rows of the table `tensor` is


@dataclass(eq=False)
class Use:
    """One place where a source meets the batch. `failed`: found to mix sequences."""

    source: Source
    what: str
    failed: bool = False


# Which parameters are slow, by model and by its uses: the outcome of the check of the first pass.
_checked: weakref.WeakKeyDictionary[nn.Module, dict[tuple, frozenset[str]]] = weakref.WeakKeyDictionary()


class Tape(TorchFunctionMode):
    """Records the uses of `parameters` (name to tensor) in one forward over `sequences` sequences.

    with Tape(model, parameters, sequences) as tape:
        losses = loss_fn(model, batch)
        tape.backward(losses, cotangent, grouping, receive)
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sequences: int):
        super().__init__()
        self.model, self.parameters, self.sequences = model, dict(parameters), sequences
        self.sources = {id(p): Source(p, (name,), "parameter") for name, p in self.parameters.items()}
        self.uses: list[Use] = []
        self.slow: set[str] = set()
        self.phase = "forward"  # then check | collect | plain
        self._eager: contextlib.AbstractContextManager = contextlib.nullcontext()

    # Forward: every torch call passes here.

    def __enter__(self) -> Tape:
        if "torch._dynamo" in sys.modules:  # compiled parts run eagerly: their operations must be seen
            self._eager = torch.compiler.set_stance("force_eager")
            self._eager.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._eager.__exit__(*error)
        self.sources.clear()
        self.uses.clear()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        sources = self.sources
        for a in args:
            if id(a) in sources or (type(a) in (list, tuple) and any(id(x) in sources for x in a)):
                break
        else:
            if not kwargs or not any(id(a) in sources for a in kwargs.values()):
                return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        out = self._product(func, args, kwargs)
        if out is NotImplemented:
            out = self._broadcast(func, args, kwargs)
        if out is NotImplemented:
            out = self._batchless_or_slow(func, args, kwargs)
        return out

    def source(self, value: Any) -> Source | None:
        return self.sources.get(id(value))

    def batched(self, x: Any) -> bool:
        """Whether x may hold a row, or several, of every sequence. The first pass checks the claim."""
        return isinstance(x, Tensor) and x.ndim >= 1 and x.shape[0] > 0 and x.shape[0] % self.sequences == 0

    def _register(self, source: Source, what: str) -> Use | None:
        if self.phase != "forward":  # activation checkpointing recomputes: the use is on the tape already
            return None
        use = Use(source, what)
        self.uses.append(use)
        return use

    def _product(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if func in LINEAR:
            x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
            return self._linear(x, weight, bias, transposed=False)
        if func in ADDMM and not kwargs and len(args) == 3:
            return self._linear(args[1], args[2], args[0], transposed=True)
        if func in MATMUL and not kwargs and len(args) == 2:
            return self._linear(args[0], args[1], None, transposed=True)
        if func is F.embedding:
            return self._embedding(args, kwargs)
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype in (torch.int64, torch.int32):
            return self._embedding((args[1], args[0]), {})
        if func in NORMS:
            return self._norm(func, args, kwargs)
        return NotImplemented

    def _linear(self, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
        """x Wᵀ + b, or x W + b where transposed."""
        w, b = self.source(weight), self.source(bias)
        plain = weight.ndim == 2 and (bias is None or bias.ndim == 1) if isinstance(weight, Tensor) else False
        if not plain or self.source(x) or not self.batched(x) or x.ndim < 2:
            return NotImplemented
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        elif weight.dtype != x.dtype:
            return NotImplemented
        use_w = self._register(w, "linear") if w else None
        use_b = self._register(b, "bias") if b else None
        # A parameter outside the chosen subset needs no gradient at all.
        weight, bias = (
            t.detach() if s is None and t is not None and t.is_leaf else t for t, s in ((weight, w), (bias, b))
        )
        return _Linear.apply(x, weight, bias, self, use_w, use_b, transposed)

    def _embedding(self, args: tuple, kwargs: dict) -> Any:
        names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        index, weight, padding, max_norm, _, by_freq, sparse = bind(names, args, kwargs)
        source = self.source(weight)
        if source is None or source.kind != "parameter" or weight.ndim != 2 or max_norm or by_freq or sparse:
            return NotImplemented
        if padding is not None and padding < 0:
            padding += weight.shape[0]
        leading = index.shape[0] if index.ndim >= 2 else 0
        if leading == self.sequences:
            return _Embedding.apply(index, weight, padding, self, self._register(source, "embedding"))
        if padding is not None or not (index.ndim == 1 or leading == 1):
            return NotImplemented
        # One table for all sequences (positions): per sequence where it meets the batch.
        out = F.embedding(index, weight)
        self.sources[id(out)] = Source(out, source.names, "rows", index)
        return out

    def _norm(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The norm without its gain and bias, which then follow as broadcast operations."""
        if func is F.layer_norm:
            x, shape, gain, bias, eps = bind(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
            out = F.layer_norm(x, shape, None, None, 1e-5 if eps is None else eps)
        else:
            x, shape, gain, eps = bind(("input", "normalized_shape", "weight", "eps"), args, kwargs)
            out, bias = F.rms_norm(x, shape, None, eps), None
        if self.source(x):
            return NotImplemented
        for parameter, operation in ((gain, torch.mul), (bias, torch.add)):
            if self.source(parameter):
                out = self._broadcast(operation, (out, parameter), {})
                if out is NotImplemented:
                    return NotImplemented
            elif parameter is not None:
                out = operation(out, parameter)
        return out if out.dtype == x.dtype or torch.is_autocast_enabled(x.device.type) else out.to(x.dtype)

    def _broadcast(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """An elementwise operation between batched tensors and sources: B views of each source."""
        if func not in BROADCAST or any(self.source(value) for value in kwargs.values()):
            return NotImplemented
        if func.__name__.endswith("_") and func.__name__[:2] != "__" and self.source(args[0]):
            return NotImplemented
        batched = [a for a in args if isinstance(a, Tensor) and a.ndim and not self.source(a)]
        like = max(batched, key=lambda a: a.ndim, default=None)
        if like is None or like.shape[0] != self.sequences:
            return NotImplemented
        found = [source for source in map(self.source, args) if source]
        if any(z.tensor.ndim > like.ndim or (z.tensor.ndim == like.ndim and z.tensor.shape[0] != 1) for z in found):
            return NotImplemented
        expanded = []
        for a in args:
            if z := self.source(a):
                a = _Expand.apply(a, like.ndim, self, self._register(z, "broadcast"))
            expanded.append(a)
        return func(*expanded, **kwargs)

    def _batchless_or_slow(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        out = func(*args, **kwargs)
        results = [t for t in leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [source for source in map(self.source, given) if source]
        names = tuple(dict.fromkeys(name for source in known for name in source.names))
        others = [t for t in given if not self.source(t)]
        meets_batch = any(t.requires_grad or (t.ndim and t.shape[0] == self.sequences > 1) for t in others)
        for t in results:
            if (same := self.source(t)) is not None:  # in place, or nothing to do
                if same.kind != "parameter":
                    same.kind = "graph"
                continue
            if meets_batch or any(t is other for other in others):
                self.slow.update(names)
            else:
                turned = len(known) == 1 and known[0].kind == "parameter" and is_transpose(t, known[0].tensor)
                self.sources[id(t)] = Source(t, names, "transposed" if turned else "graph")
        return out

    # Backward.

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
        if self.phase == "forward":
            self._finish_forward(losses)
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
                # What torch.autograd.grad calls; that function itself would take the tape off while it runs, and
                # activation checkpointing recomputes the forward meanwhile, which must take the same ways again.
                return torch.autograd.Variable._execution_engine.run_backward(
                    (losses,), (cotangent,), retain, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False
                )
        except RuntimeError as error:
            if "use_reentrant=True" in str(error):
                raise ValueError("activation checkpointing: set use_reentrant=False") from error
            raise
        finally:
            self.phase = "idle"

    def _finish_forward(self, losses: Tensor) -> None:
        """Find what is slow: by the operations seen, and, the first time, by a backward of one sequence."""
        self.phase = "idle"
        if not losses.requires_grad:
            raise ValueError("the losses depend on no parameter that requires a gradient")
        if len(losses) == 1:
            return
        known = _checked.setdefault(self.model, {})
        uses = tuple((use.what, use.source.kind, use.source.names) for use in self.uses)
        signature = (frozenset(self.parameters), uses)
        # The gradients of a loss that is not finite say nothing about the layout.
        if signature not in known and bool(losses.isfinite().all()):
            known[signature] = self._check(losses)
        self.slow |= known.get(signature, frozenset())

    def _check(self, losses: Tensor) -> frozenset[str]:
        self.probe = int(losses.detach().abs().flatten(1).sum(1).argmax())  # one whose losses are not masked
        cotangent = torch.zeros_like(losses)
        cotangent[self.probe] = 1
        gradients = self._run("check", losses, cotangent, True)
        unseen = {name for name, g in zip(self.parameters, gradients, strict=True) if g is not None}
        return frozenset(unseen.union(*(use.source.names for use in self.uses if use.failed)))

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

    def _arrive(self, name: str, contribution: Contribution) -> None:
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
        """Note a use that receives a gradient of one sequence's losses outside that sequence. gradient (B, ...)."""
        if use is not None and self.phase == "check":
            elsewhere = gradient.flatten(1).any(1)
            elsewhere[self.probe] = False
            use.failed |= bool(elsewhere.any())

    def collect_product(self, use: Use, delta: Tensor, x: Tensor, transposed: bool) -> None:
        """delta (B, N, out), x (B, N, in) of y = x Wᵀ (or x W)."""
        product = Product.make(delta, x, self.grouping)
        if transposed:
            product = product.transposed
        source = use.source
        if source.kind == "parameter":
            self._arrive(source.names[0], product)
        elif source.kind == "transposed":
            self._arrive(source.names[0], product.transposed)
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
            self._arrive(source.names[0], Rows.make(index, value, grouping))
        elif source.kind == "parameter":
            value = grouping.sum(gradient).reshape(grouping.count, *matrix_shape(source.tensor))
            self._arrive(source.names[0], Dense(value))
        else:
            self._pull_back(source, grouping.sum(gradient))

    def _pull_back(self, source: Source, gradient: Tensor) -> None:
        """From group gradients (K, ...) of a batchless tensor to those of the parameters that it came from."""
        inputs = [self.parameters[name] for name in source.names]
        with torch.enable_grad():
            per_group = [
                torch.autograd.grad(
                    source.tensor, inputs, g.to(source.tensor.dtype), retain_graph=True, materialize_grads=True
                )
                for g in gradient
            ]
        for name, rows in zip(source.names, zip(*per_group, strict=True), strict=True):
            shape = matrix_shape(self.parameters[name])
            self._arrive(name, Dense(torch.stack(rows).view(len(rows), *shape)))


def unseen(backward: Callable) -> Callable:
    """Run without passing each operation through the tape."""

    @functools.wraps(backward)
    def run(ctx: Any, delta: Tensor) -> tuple:
        saved = ctx.saved_tensors  # may recompute the forward, which must be seen
        with torch._C.DisableTorchFunction():
            return backward(ctx, delta, *saved)

    return run


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b (x W + b where transposed); the gradients of W and b go to the tape."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tape: Tape,
        use_w: Use | None,
        use_b: Use | None,
        transposed: bool,
    ) -> Tensor:
        ctx.tape, ctx.uses, ctx.transposed = tape, (use_w, use_b), transposed
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor, x: Tensor, weight: Tensor) -> tuple:  # type: ignore[override]
        tape: Tape = ctx.tape
        use_w, use_b = ctx.uses
        rows = delta.reshape(tape.sequences, -1, delta.shape[-1])
        inputs = x.reshape(tape.sequences, -1, x.shape[-1])
        if tape.phase == "check":
            tape.check(use_w, rows)
            tape.check(use_b, rows)
        if tape.wants(use_w):
            tape.collect_product(use_w, rows, inputs, ctx.transposed)
        if tape.wants(use_b):
            tape.collect_dense(use_b, rows.sum(1))
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = delta @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[1] and tape.passes(use_w):
            grad_w = (rows.flatten(0, 1).T @ inputs.flatten(0, 1)).to(ctx.dtypes[0])
            grad_w = grad_w.T if ctx.transposed else grad_w
        if ctx.needs_input_grad[2] and tape.passes(use_b):
            grad_b = rows.sum((0, 1)).to(ctx.dtypes[1])
        return grad_x, grad_w, grad_b, None, None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a table, a row for each id; the gradient goes to the tape."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, padding: int | None, tape: Tape, use: Use | None) -> Tensor:
        ctx.tape, ctx.use, ctx.padding, ctx.shape = tape, use, padding, weight.shape
        ctx.save_for_backward(index)
        return F.embedding(index, weight)

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor, index: Tensor) -> tuple:  # type: ignore[override]
        tape: Tape = ctx.tape
        if ctx.padding is not None:
            delta = delta.masked_fill((index == ctx.padding)[..., None], 0)
        tape.check(ctx.use, delta)
        if tape.wants(ctx.use):
            index = index.flatten(1)
            rows = Rows.make(index, delta.reshape(*index.shape, -1), tape.grouping)
            tape._arrive(ctx.use.source.names[0], rows)
        grad = None
        if tape.passes(ctx.use):
            grad = delta.new_zeros(ctx.shape).index_add_(0, index.flatten(), delta.flatten(0, -2))
        return None, grad, None, None, None


class _Expand(torch.autograd.Function):
    """A source as B views of itself, with `ndim` dimensions; the gradient of each goes to the tape."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, ndim: int, tape: Tape, use: Use | None) -> Tensor:
        ctx.tape, ctx.use, ctx.shape = tape, use, z.shape
        inner = z.shape[1:] if z.ndim == ndim else z.shape
        return z.view(1, *[1] * (ndim - 1 - len(inner)), *inner).expand(tape.sequences, *[-1] * (ndim - 1))

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor) -> tuple:  # type: ignore[override]
        tape: Tape = ctx.tape
        tape.check(ctx.use, delta)
        if tape.wants(ctx.use):
            tape.collect_dense(ctx.use, delta.reshape(len(delta), *ctx.shape))
        grad = delta.sum(0).view(ctx.shape) if tape.passes(ctx.use) else None
        return grad, None, None, None


def bind(names: tuple[str, ...], args: tuple, kwargs: dict) -> Iterator[Any]:
    """Arguments by name, None where absent."""
    return iter([args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)])


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def is_transpose(t: Tensor, of: Tensor) -> bool:
    """Whether t is the matrix `of` seen with its two dimensions exchanged."""
    return (
        t.ndim == of.ndim == 2
        and t.data_ptr() == of.data_ptr()
        and t.shape == of.shape[::-1]
        and t.stride() == of.stride()[::-1]
    )


class LastLinear(TorchFunctionMode):
    """Remembers the last linear layer of a forward: (name, weight (V, D), input (..., D), output (..., V))."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): (name, p) for name, p in model.named_parameters()}
        self.found: tuple[str, Tensor, Tensor, Tensor] | None = None

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in LINEAR:
            x, weight = bind(("input", "weight"), args, kwargs or {})
            if id(weight) in self.names and out.requires_grad:
                self.found = (*self.names[id(weight)], x, out)
        return out
