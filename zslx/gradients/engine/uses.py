"""The forward of a measured pass: which operation uses which parameter, and what replaces it.

A torch function mode sees every operation that has a parameter among its arguments: in modules, in functional calls, of
tied weights, in a module that is used twice. Each such operation is treated in one of three ways:

    product      linear, matmul, addmm, embedding: replaced by a node of our own (nodes.py). Its backward keeps the
                 output gradient and the input of each sequence, where autograd would multiply them for the whole batch
    broadcast    add, mul, ... and the affine part of norms: the operation gets B views of the parameter, so that
                 autograd's own backward leaves a gradient for each sequence
    batchless    anything computed from parameters alone (a cast, a transpose, rows of a position table): runs as it
                 is. Where its result meets the batch, one of the two ways above applies, and the sequences' gradients
                 are then carried back to the parameters one by one

A parameter that meets the batch in any other operation is slow (tape.py). Checked by
tests/oracles/test_gradients_modules.py.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zslx.gradients.engine.nodes import Embedding, Expand, Linear
from zslx.gradients.engine.sources import Source, Use

LINEAR = {F.linear}
ADDMM = {torch.addmm, Tensor.addmm}
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}
NORMS = {F.layer_norm, F.rms_norm}
# One product for each expert of a routed layer; versions of torch differ in where it is and what it takes.
GROUPED = {getattr(owner, name) for owner, name in ((F, "grouped_mm"), (torch, "_grouped_mm")) if hasattr(owner, name)}
_ELEMENTWISE = (
    "add sub mul div true_divide rsub where maximum minimum pow lerp addcmul addcdiv "
    "add_ sub_ mul_ div_ true_divide_ pow_ lerp_ addcmul_ addcdiv_ "
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
    "__truediv__ __rtruediv__ __itruediv__ __pow__ __rpow__"
)
BROADCAST = {
    getattr(owner, name) for owner in (torch, Tensor) for name in str.split(_ELEMENTWISE) if hasattr(owner, name)
}


class Uses(TorchFunctionMode):
    """Records the uses of `parameters` (name to tensor) in one forward over `sequences` sequences.

    with Tape(model, parameters, sequences) as tape:
        losses = loss_fn(model, batch)
        tape.backward(losses, cotangent, grouping, receive)
    """

    def __init__(self, parameters: Mapping[str, Tensor], sequences: int):
        super().__init__()
        self.parameters, self.sequences = dict(parameters), sequences
        self.sources = {id(p): Source(p, (name,), "parameter") for name, p in self.parameters.items()}
        self.uses: list[Use] = []
        self.slow: set[str] = set()
        self.phase = "forward"  # then check | collect | plain
        self._eager: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> Self:
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

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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

    def _register(self, source: Source, what: str, x: Tensor) -> Use | None:
        """Note that `source` meets x, whose first dimension holds the sequences or, flattened, their rows."""
        if self.phase != "forward":  # activation checkpointing recomputes: the use is on the tape already
            return None
        use = Use(source, what, () if x.shape[0] == self.sequences else tuple(x.shape[:-1]))
        self.uses.append(use)
        return use

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        use_w = self._register(w, "linear", x) if w else None
        use_b = self._register(b, "bias", x) if b else None
        # A parameter outside the chosen subset needs no gradient at all.
        weight, bias = (
            t.detach() if s is None and t is not None and t.is_leaf else t for t, s in ((weight, w), (bias, b))
        )
        return Linear.apply(x, weight, bias, self, use_w, use_b, transposed)

    def _embedding(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        index, weight, padding, max_norm, _, by_freq, sparse = bind(names, args, kwargs)
        source = self.source(weight)
        if source is None or source.kind != "parameter" or weight.ndim != 2 or max_norm or by_freq or sparse:
            return NotImplemented
        if padding is not None and padding < 0:
            padding += weight.shape[0]
        leading = index.shape[0] if index.ndim >= 2 else 0
        if leading == self.sequences:
            return Embedding.apply(index, weight, padding, self, self._register(source, "embedding", index))
        if padding is not None or not (index.ndim == 1 or leading == 1):
            return NotImplemented
        # One table for all sequences (positions): per sequence where it meets the batch.
        out = F.embedding(index, weight)
        self.sources[id(out)] = Source(out, source.names, "rows", index)
        return out

    def _norm(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    def _broadcast(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
                a = Expand.apply(a, like.ndim, self, self._register(z, "broadcast", like))
            expanded.append(a)
        return func(*expanded, **kwargs)

    def _batchless_or_slow(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [source for source in map(self.source, given) if source]
        names = tuple(dict.fromkeys(name for source in known for name in source.names))
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:
            if func in GROUPED and any(t.dtype == torch.float64 for t in given):
                raise ValueError(
                    f"{names[0].rpartition('.')[0] or names[0]}: torch's grouped product of experts does not take "
                    "float64; use float32, or experts that are computed one by one (transformers: "
                    "experts_implementation='eager')"
                ) from error
            raise
        results = [t for t in leaves(out) if isinstance(t, Tensor) and t.requires_grad]
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


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
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
