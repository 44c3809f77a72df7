"""Packs: many small runs trained as one, so that a GPU has enough to do.

A small run is bound by the launches of its operations. The runs of a pack have the same shapes: they differ in seed, or
in settings that change no shape. One forward and one backward over their stacked weights then gives the gradients of
all of them, in as many launches as one run needs.

    weights     (R, ...) for each parameter; a run's own parameters are views of its row
    gradient    vmap of the model over runs, then a backward of Σ_r loss_r: run r's loss reaches its own row alone
    the rest    each run's own, by the code that trains a run by itself: data order, token weights, clipping, schedule,
                optimizer, records, instruments, checkpoints, folder

A run makes its gradient for itself where that takes more than one forward and backward (gradient surgery, token
alignment), and where its attention is masked. So does every run at a step where batches differ in shape between the
runs. A run that is over, or waits for others that resumed from an earlier step, keeps its row: the numbers of the
others stay as they are, bit for bit.

Exact but for rounding: matrix products over a stack add up in another order than single ones, so `packed` is part of a
run's identity. Checked against runs by themselves by tests/unit/test_pack.py.

Shapes: R runs, B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zslx.config.run_config import Config
from zslx.model.losses import cross_entropy
from zslx.text.loader import Batch
from zslx.training.course import Course, Request
from zslx.training.step_gradient import GradientPass, StepGradient
from zslx.training.train import training

Outcome = dict[str, Any] | BaseException  # a manifest, or what ended the run


def train_pack(
    configs: Sequence[Config], outs: Sequence[str | Path], progress: Callable[[], None] | None = None
) -> list[Outcome]:
    """Train runs as one pack, each in its folder, or go on with them; their manifests, or the errors that ended them.

    `progress()` is called after each step. ValueError where the configurations differ in a shape.
    """
    check_shapes(configs)
    courses = [training(config, out, packed=True) for config, out in zip(configs, outs, strict=True)]
    waiting: dict[int, Request] = {}
    outcomes: dict[int, Outcome] = {}

    def go_on(i: int, move: Callable[[Course], Request]) -> None:
        """Let run i work until it asks for its next gradient, or ends. Its errors are its own."""
        waiting.pop(i, None)
        try:
            waiting[i] = move(courses[i])
        except StopIteration as ended:
            outcomes[i] = ended.value
        except Exception as error:
            outcomes[i] = error

    try:
        for i in range(len(courses)):
            go_on(i, next)
        pack = Pack({i: request.own for i, request in waiting.items()})
        while waiting:
            step = min(request.step for request in waiting.values())
            due = {i: request.batch for i, request in waiting.items() if request.step == step}
            for i, found in pack.gradients(due, step).items():
                go_on(i, partial(answer, found))
            if progress:
                progress()
    finally:
        for course in courses:
            course.close()
    return [outcomes[i] for i in range(len(courses))]


def answer(found: StepGradient | Exception, course: Course) -> Request:
    """Give a run its gradient, or the error in its place; its next request."""
    return course.throw(found) if isinstance(found, Exception) else course.send(found)


def check_shapes(configs: Sequence[Config]) -> None:
    """ValueError, naming the key, where the runs cannot share a pass."""
    first = configs[0]
    for config in configs[1:]:
        pairs = {
            "model": (first.model, config.model),
            "data.batch_size": (first.data.batch_size, config.data.batch_size),
            "data.seq_len": (first.data.seq_len, config.data.seq_len),
            "data.vocab_size": (first.data.vocab_size, config.data.vocab_size),
            "train.dtype": (first.train.dtype, config.train.dtype),
            "train.device": (first.train.device, config.train.device),
            "train.threads": (first.train.threads, config.train.threads),
        }
        for key, (one, other) in pairs.items():
            if one != other:
                raise ValueError(f"a pack needs runs of the same {key}, got {one} and {other}")


class Pack:
    """The stacked weights of runs, and the pass over them."""

    def __init__(self, passes: Mapping[int, GradientPass]):
        """`passes`: the gradient pass of each run, with its model."""
        self.passes = dict(passes)
        self.row = {i: r for r, i in enumerate(self.passes)}
        self.stack: dict[str, Tensor] = {}
        if len(self.passes) < 2:
            return
        parameters = [dict(own.model.named_parameters()) for own in self.passes.values()]
        for name in parameters[0]:
            self.stack[name] = torch.stack([own[name].detach() for own in parameters])
            for row, own in enumerate(parameters):
                own[name].data = self.stack[name][row]

    def gradients(self, batches: Mapping[int, Batch], step: int) -> dict[int, StepGradient | Exception]:
        """The gradient of each run that is due, or the error that it ran into."""
        began = time.perf_counter()
        able = {i: b for i, b in batches.items() if self.passes[i].one_pass and b.context is None}
        shapes = {batch.tokens.shape for batch in able.values()}
        together = able if len(able) > 1 and len(shapes) == 1 else {}
        found = self._together(together, step) if together else {}
        found |= self._one_by_one({i: batch for i, batch in batches.items() if i not in together}, step)
        share = (time.perf_counter() - began) / len(batches)
        for gradient in found.values():
            if isinstance(gradient, StepGradient):
                gradient.seconds = share
        return found

    def _one_by_one(self, batches: Mapping[int, Batch], step: int) -> dict[int, StepGradient | Exception]:
        return {i: attempt(partial(self.passes[i], batch, step)) for i, batch in batches.items()}

    def _together(self, batches: Mapping[int, Batch], step: int) -> dict[int, StepGradient | Exception]:
        leaves = {name: rows.detach().requires_grad_() for name, rows in self.stack.items()}
        spare = next(iter(batches.values()))  # for the rows of runs that are not due: no loss of theirs counts
        own = [batches.get(i, spare) for i in self.passes]
        tokens, targets = (torch.stack([getattr(batch, what) for batch in own]) for what in ("tokens", "targets"))
        first = next(iter(self.passes.values()))
        logits_too = any(one.needs_logits for one in self.passes.values())

        def forward(weights: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            logits = torch.func.functional_call(first.model, weights, (tokens,))
            return (cross_entropy(logits, targets), logits) if logits_too else (cross_entropy(logits, targets),)

        with first.autocast(spare), attention(tokens.device):
            losses, *logits = torch.vmap(forward)(leaves, tokens, targets)
        found: dict[int, StepGradient | Exception] = {}
        means: list[Tensor] = []

        def weighted(i: int, row: int, batch: Batch) -> StepGradient:
            own = self.passes[i]
            with own.autocast(batch):
                seen = logits[0][row] if own.needs_logits else None
                total, plain, view = own.weighted(losses[row], seen, batch, step)
            means.append(total.mean())
            return StepGradient(view=view, losses=plain)

        for i, batch in batches.items():
            found[i] = attempt(partial(weighted, i, self.row[i], batch))
        if means:
            torch.stack(means).sum().backward()
        for i, gradient in found.items():
            if isinstance(gradient, StepGradient):
                for name, p in self.passes[i].model.named_parameters():
                    whole = leaves[name].grad
                    p.grad = None if whole is None else whole[self.row[i]]
        return found


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """The CPU's fused attention has no form over a stack; the plain one has."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def attempt(work: Callable[[], StepGradient]) -> StepGradient | Exception:
    """What the work gives, or the exception that it raises."""
    try:
        return work()
    except Exception as error:
        return error
