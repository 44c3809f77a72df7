"""Packs: many small runs trained as one, so that a GPU has enough to do.

A small run is bound by the launches of its operations. The runs of a pack have the same shapes: they differ in seed, or
in settings that change no shape. One pass over their stacked weights then serves all of them, in as many launches as
one run needs; on a GPU in one launch, from a CUDA graph.

    weights     one matrix (stack.py); a run's own parameters are views of its row
    gradient    vmap of the model over runs, then a backward of Σ_r loss_r: run r's loss reaches its own row alone
    update      clipping and AdamW over the whole matrix; a run whose numbers are not finite stays where it is
    held-out    one forward of all runs; gradient interference at probe steps likewise (stacked_probe.py)
    numbers     losses and norms stay on the device for some steps (numbers.py)
    the rest    each run's own, by the code that trains a run by itself: data order, token weights, schedule, other
                optimizers, records, checkpoints, folder

Gradient surgery over sequences, or groups of them, has the gradients of all sequences of all runs from one pass, and
each method its weights from its own Gramian (sequence_surgery.py). A run that takes more than that (groups of tokens,
token alignment), or whose model grows, makes gradient and update for itself; one whose attention is masked makes its
gradient.

A run that is over, or waits for others that resumed from an earlier step, keeps its row, and batches of another shape
than the others' get a pass of their own: the numbers of a run are, bit for bit, those that it has whatever becomes of
the others.

Exact but for rounding: matrix products over a stack add up in another order than single ones, so `packed` is part of a
run's identity. Checked against runs by themselves by tests/unit/test_pack.py.

Shapes: R runs, B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zslx.config.run_config import Config
from zslx.intervention.raised import attempt
from zslx.training.course import NORM, Begin, Course, Gradient, Interference, Losses, Request, Update
from zslx.training.numbers import Block, Later, Number, finite
from zslx.training.pack_shape import check_shapes
from zslx.training.sequence_surgery import SequenceSurgery
from zslx.training.stack import Stack, StackedAdamW
from zslx.training.stacked_pass import StackedPass
from zslx.training.stacked_probe import StackedProbe
from zslx.training.step_gradient import StepGradient
from zslx.training.train import training

Outcome = dict[str, Any] | BaseException  # a manifest, or what ended the run
Answers = dict[int, Any]  # by run; an exception where a run has none
STEPS = 64  # whose numbers come over together


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
        """Let run i work until it asks for something, or ends. Its errors are its own."""
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
        pack = Pack({i: request for i, request in waiting.items() if isinstance(request, Begin)})
        while waiting:
            moment = min((request.step, request.place) for request in waiting.values())
            due = {i: request for i, request in waiting.items() if (request.step, request.place) == moment}
            began = time.perf_counter()
            found = pack.answers(due)
            share = (time.perf_counter() - began) / len(due)
            for i, answer in found.items():
                go_on(i, partial(give, answer, share))
            if progress and moment[1] == Update.place:
                progress()
    finally:
        for course in courses:
            course.close()
    return [outcomes[i] for i in range(len(courses))]


def give(answer: Any, seconds: float, course: Course) -> Request:
    """Give a run what it asked for, or the error in its place; its next request."""
    return course.throw(answer) if isinstance(answer, Exception) else course.send((answer, seconds))


class Pack:
    """The stacked weights of runs, and the passes over them."""

    def __init__(self, begun: Mapping[int, Begin]):
        self.begun = dict(begun)
        self.row = {i: r for r, i in enumerate(self.begun)}
        if not self.begun:
            return
        runs = list(self.begun.values())
        self.stack = Stack([run.gradient.model for run in runs])
        self.passes = StackedPass(self.stack, runs[0].gradient, logits=any(r.gradient.needs_logits for r in runs))
        self.alone = {i for i, run in self.begun.items() if not (run.gradient.one_pass or run.gradient.by_sequence)}
        self.stacked = {i for i, run in self.begun.items() if run.plain and i not in self.alone}
        optimizers = [run.optimizers[0] if i in self.stacked else None for i, run in self.begun.items()]
        clips = [run.clip for run in runs]
        self.adamw = StackedAdamW(self.stack, optimizers, clips, compiled=runs[0].gradient.compiled)
        self.gradient = torch.zeros_like(self.stack.weights)
        self.gradient_rows = self.stack.rows(self.gradient)
        self.losses = self.stack.weights.new_zeros(len(runs))  # of the step, by run
        self.block = Block()
        self.masks: dict[tuple[int, ...], Tensor] = {}

    def answers(self, due: Mapping[int, Any]) -> Answers:
        """The answer to each request; all are of one kind and step."""
        kind = type(next(iter(due.values())))
        answer: Callable[[Any], Answers] = {
            Begin: lambda due: dict.fromkeys(due),
            Losses: self.held_out,
            Gradient: self.gradients,
            Update: self.updates,
            Interference: self.interference,
        }[kind]
        return answer(due)

    def held_out(self, due: Mapping[int, Losses]) -> Answers:
        """Held-out losses (S, T) of the runs that ask for them."""
        first = next(iter(due.values()))
        decompositions = {self.row[i]: ask.decomposition for i, ask in due.items() if ask.decomposition is not None}
        losses = self.passes.held_out(first.heldout, decompositions)
        return {i: losses[self.row[i]].clone() for i in due}

    def interference(self, due: Mapping[int, Interference]) -> Answers:
        """Gradient interference of the runs; one pass serves those that measure over the same numbers. A run whose
        model grows measures for itself: layers that it does not use yet would have gradients in a common pass."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        growing = {i for i in due if self.begun[i].gradient.methods.has("depth")}
        samples = {i: ask.instruments.sample(ask.step) for i, ask in due.items() if i not in growing}
        for i, sample in samples.items():
            alike.setdefault((sample.sequences, sample.positions, sample.tokens), []).append(i)
        found: Answers = {i: attempt(due[i].by_itself) for i in growing}
        for runs in alike.values():
            before = self.stack.joined(
                {
                    name: torch.stack([due[i].instruments.weights_before[name] for i in runs])
                    for name in self.stack.shapes
                }
            )
            after = self.stack.weights[[self.row[i] for i in runs]]
            probe = StackedProbe(self.passes, due[runs[0]].instruments.heldout)
            found |= zip(runs, probe.records([samples[i] for i in runs], before, after), strict=True)
        return found

    def gradients(self, due: Mapping[int, Gradient]) -> Answers:
        """The gradient of each run, in its row of `self.gradient`."""
        alone: dict[int, Gradient] = {}
        plain: dict[torch.Size, dict[int, Gradient]] = {}
        surgery: dict[torch.Size, dict[int, Gradient]] = {}
        for i, ask in due.items():
            if i in self.alone or ask.batch.context is not None:
                alone[i] = ask
            else:
                together = plain if ask.own.one_pass else surgery
                together.setdefault(ask.batch.tokens.shape, {})[i] = ask
        found: Answers = {}
        for of_one_shape in plain.values():
            found |= self._together(of_one_shape)
        for of_one_shape in surgery.values():
            found |= self._by_sequence(of_one_shape)
        found |= {i: attempt(partial(self._alone, i, ask)) for i, ask in alone.items()}
        # The losses' row of the block; those of runs that are not due say nothing.
        at = self._keep(self.losses.clone())
        for i in found.keys() - alone.keys():
            if isinstance(found[i], StepGradient):
                found[i].loss = Later(*at, self.row[i])
        return found

    def _alone(self, i: int, ask: Gradient) -> StepGradient:
        found = ask.by_itself()
        self._take(i)
        self.losses[self.row[i]] = float(found.loss)
        return found

    def _take(self, i: int) -> None:
        """Put a run's own `.grad` into its row."""
        rows = self.gradient_rows[self.row[i]]
        for name, p in self.stack.parameters[self.row[i]].items():
            rows[name].zero_() if p.grad is None else rows[name].copy_(p.grad)

    def _by_sequence(self, due: Mapping[int, Gradient]) -> Answers:
        """Gradient surgery, from the gradients of each sequence of each run."""
        spare = next(iter(due.values()))
        batches = [due.get(i, spare).batch for i in self.begun]
        losses, gradients, gramians, means = self.passes.sequence_gradients(batches)
        surgery = SequenceSurgery(self.stack, self.row, losses, gradients, gramians, means)
        found = surgery.answers(due)
        for i in surgery.combined:
            self._take(i)
        if surgery.weighed:
            self._put(self.gradient, surgery.gradient(), surgery.weighed)
        self._put(self.losses, means, due)
        return found

    def _together(self, due: Mapping[int, Gradient]) -> Answers:
        spare = next(iter(due.values()))  # for the rows of runs that are not due: no loss of theirs counts
        batches = [due.get(i, spare).batch for i in self.begun]
        losses, logits, means = self.passes.forward(batches)
        plain = losses.detach().unbind()
        watched = [i for i, ask in due.items() if ask.own.watched]
        seen = means.tolist() if watched else []
        found: Answers = {}
        totals: list[Tensor] = []

        def weigh(i: int, ask: Gradient) -> StepGradient:
            row, view = self.row[i], None
            if ask.own.watched:
                finite("the loss", seen[row], ask.step)
                with ask.own.autocast(ask.batch):
                    weighted, view = ask.own.weighted(losses[row], None if logits is None else logits[row], ask.batch)
                totals.append(weighted.mean())
            return StepGradient(view=view, losses=plain[row], loss=0.0)

        for i, ask in due.items():
            found[i] = attempt(partial(weigh, i, ask))
        if len(watched) < len(due):
            own = self._mask(i for i in due if i not in watched)
            totals.append(torch.where(own, losses.mean((1, 2)), 0.0).sum())
        if totals:
            self._put(self.gradient, self.passes.backward(torch.stack(totals).sum()), due)
        self._put(self.losses, means, due)
        return found

    def _mask(self, runs: Iterable[int]) -> Tensor:
        """(R,): which rows are those of the runs. Kept on the device, since making one is a transfer."""
        rows = tuple(self.row[i] for i in runs)
        if rows not in self.masks:
            mask = torch.zeros(len(self.begun), dtype=torch.bool)
            mask[list(rows)] = True
            self.masks[rows] = mask.to(self.losses.device)
        return self.masks[rows]

    def _put(self, into: Tensor, found: Tensor, runs: Collection[int]) -> None:
        """Copy the rows of these runs."""
        if len(runs) == len(self.begun):
            into.copy_(found)
        else:
            mask = self._mask(runs)
            torch.where(mask.view(-1, *[1] * (into.ndim - 1)), found, into, out=into)

    def updates(self, due: Mapping[int, Update]) -> Answers:
        """Clip the gradients, and let every run move by its own; the norms before clipping."""
        rates = [
            run.optimizers[0].param_groups[0]["lr"] if i in due and i in self.stacked else None
            for i, run in self.begun.items()
        ]
        norms, clipped = self.adamw.step(self.gradient, self.losses, rates)
        at = self._keep(norms)
        found: Answers = {i: Later(*at, self.row[i]) for i in due}
        for i, ask in due.items():
            if i in self.alone:
                found[i] = attempt(ask.by_itself)
            elif i not in self.stacked:
                gradient = self.stack.row(clipped[self.row[i]])
                found[i] = attempt(partial(self._own_update, ask, gradient, found[i], self.row[i]))
        if len(self.block.rows) >= 2 * STEPS:
            self.block.fetch()
        return found

    def _own_update(self, ask: Update, gradient: Mapping[str, Tensor], norm: Number, row: int) -> Number:
        """The update of a run with an optimizer of its own."""
        for name, p in self.stack.parameters[row].items():
            p.grad = gradient[name]
        finite(NORM, float(norm), ask.step)
        for optimizer in ask.optimizers:
            optimizer.step()
        return norm

    def _keep(self, numbers: Tensor) -> tuple[Block, int]:
        """Where the numbers (R,) will be found."""
        if self.block.values is not None:
            self.block = Block()
        return self.block, self.block.add(numbers)
