"""The training loop.

    for step in 1..T:
        model     all layers, or as many as a method has in use
        batch     as the mixture and the curriculum ask, else in the data's own order
        gradient  plain, with token weights, or through the gradient engine
        update    clip, learning rate, optimizer
        observe   stateful methods learn from the step
        record    a line in steps.jsonl

At probe steps the instruments measure before and after this and add a line to probes.jsonl. A loss or gradient that
is not finite ends the run before its update; the record says `diverged`. Weights are kept at powers of two and at the
end; the whole state, to go on from, every `resume_seconds` and where the run ends or pauses (zslx/runs/checkpoints.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zslx.intervention.base import StepStats
from zslx.model.optimization import schedule_factor
from zslx.model.weights import weights_of
from zslx.runs.records import read_manifest
from zslx.text.loader import Batch, Choice, Ids, Walk
from zslx.training.built_run import BuiltRun
from zslx.training.clock import Clock
from zslx.training.course import NORM, Answer, Begin, Course, Gradient, Interference, Losses, Request, Update, alone
from zslx.training.numbers import Diverged, finite, known
from zslx.training.step_gradient import StepGradient

Progress = Callable[[int, int, float], None]
BLOCK = 64  # steps whose lines may wait for their numbers


class TrainingRun(BuiltRun):
    """A run that trains."""

    def loop(self, progress: Progress | None = None) -> dict[str, Any]:
        """Train by itself; returns status and totals."""
        return alone(self.course(self.resume(), progress))

    def course(self, done: int, progress: Progress | None = None) -> Course:
        """Train from step `done`, at which the run stands (`resume`), to the end, or to `run.until`, asking for each
        gradient; returns status and totals.
        """
        config, steps = self.config, self.config.train.steps
        end = min(config.run.until or steps, steps)
        clock = Clock(self.records)
        saved_at = time.monotonic()
        diverged, step = False, done  # a run killed after its last checkpoint has no step left to take
        with self.records, self.saver:
            yield self.begin()
            if done == 0:
                yield from self.probe(0, clock)
            for step in range(done + 1, end + 1):
                kept = step & (step - 1) == 0 or step == steps
                before = weights_of(self.model) if kept else {}
                try:
                    yield from self.advance(step, clock)
                    saving = step == end or self.agreed(time.monotonic() - saved_at >= config.run.resume_seconds)
                    if kept or saving or len(self.lines) >= BLOCK:
                        with clock.training():
                            self.settle()
                except Diverged as error:
                    diverged, step = True, self.ended_by(error, step)
                    break
                if progress and not self.lines:
                    progress(step, end, self.loss)
                if kept:
                    self.keep(step, before)
                if saving:
                    self.save(step)
                    saved_at = time.monotonic()
            clock.write(step)
            self.records.flush(sync=True)
        status = "diverged" if diverged else "finished" if step == steps else "paused"
        return {"status": status, "totals": self.totals(step, clock)}

    def agreed(self, due: bool) -> bool:
        """What comes of a decision that depends on the clock."""
        return due

    def totals(self, step: int, clock: Clock) -> dict[str, Any]:
        """What the manifest says of the run as a whole."""
        totals = {"steps": step, "tokens": self.tokens, **clock.totals(self.out)}
        if self.config.reference:
            reference = read_manifest(self.config.reference).get("totals", {})
            totals["reference_seconds"] = reference.get("train_seconds")
        return totals

    def begin(self) -> Begin:
        """What a driver must know of the run."""
        return Begin(
            step=0,
            gradient=self.gradient,
            optimizers=self.optimizers,
            clip=self.config.optim.clip,
            plain=not self.methods.has("optimizer"),
        )

    def step(self, step: int, clock: Clock) -> None:
        """One step of training by itself."""
        alone(self.advance(step, clock))

    def advance(self, step: int, clock: Clock) -> Generator[Request, Answer, None]:
        """One step of training with its records, as a part of `course`."""
        due = self.instruments.due(step)
        if due:
            lacking = None
            if self.instruments.lacks(step):
                lacking, seconds = yield self._losses(step, before=True)
                clock.measured += seconds
            with clock.instruments():
                self.instruments.before(step, self.model, lacking)
        with clock.training():
            self.methods.run.step = step
            grown = self.grow()
            batch = self.batch(step)
        gradient, seconds = yield Gradient(step=step, own=self.gradient, batch=batch)
        clock.charge(seconds)
        with clock.training():
            self.tokens += batch.tokens.numel()
            record = {"step": step, "tokens": self.tokens, "loss": gradient.loss} | self.rates(step) | grown
            control = self.control if self.control and self.control.due else None
            if control:
                control.before()
        if gradient.skipped:
            record |= {"grad_norm": None, "clipped": False, "skipped": True}
        else:
            norm, seconds = yield Update(
                step=step, model=self.model, optimizers=self.optimizers, clip=self.config.optim.clip
            )
            clock.charge(seconds)
            record |= {"grad_norm": norm, "clipped": False}
        with clock.training():
            if control:
                control.after()
            self.observe(gradient, batch)
            self.lines.append(record | gradient.record | self.methods.metrics())
            if all(known(self.lines[0][key]) for key in ("loss", "grad_norm")):
                self.settle()
        clock.stepped()
        if due:
            with clock.training():
                self.settle()
            yield from self.probe(step, clock, batch, gradient.losses)
            clock.write(step)
            self.records.flush(sync=False)  # whoever watches the run sees a probe before the next step

    def settle(self) -> None:
        """Write the lines of the steps so far, in a pack a while after them. Diverged where a number is not finite."""
        while self.lines:
            line, clip = self.lines[0], self.config.optim.clip
            line["loss"] = self.loss = finite("the loss", float(line["loss"]), line["step"])
            if line["grad_norm"] is not None:
                line["grad_norm"] = norm = finite(NORM, float(line["grad_norm"]), line["step"])
                line["clipped"] = bool(clip and norm > clip)
            self.records.append_step(line)
            self.tokens_written = line["tokens"]
            del self.lines[0]

    def ended_by(self, error: Diverged, step: int) -> int:
        """Write the line with which a run that diverged ends; the first step whose numbers are not finite."""
        try:
            self.settle()  # steps before may have diverged, too
        except Diverged as first:
            error, step = first, self.lines[0]["step"]
        self.tokens = self.tokens_written
        self.records.append_step({"step": step, "tokens": self.tokens, "loss": None, "diverged": str(error)})
        return step

    def grow(self) -> dict[str, int]:
        """Take the layers into use that a method wants from this step on; what is recorded of it."""
        if not self.methods.has("depth"):
            return {}
        self.model.grow(self.methods.depth())
        self.methods.run.depth = self.model.depth
        return {"depth": self.model.depth}

    def batch(self, step: int) -> Batch:
        """The batch of the step, as the interventions want it."""
        methods = self.methods
        choose = self.windows if methods.has("windows") else None
        mixture, count = methods.mixture(), methods.batch_size()
        batch = self.loader.batch(step, mixture, seq_len=methods.seq_len(), choose=choose, batch_size=count)
        if not methods.has("context"):
            return batch
        return dataclasses.replace(batch, context=methods.context(batch.tokens))

    def windows(self, walk: Walk) -> Choice | None:
        """The windows that a method chooses; where it needs the reference model, the walk can ask that one."""
        if self.gradient.reference is not None:

            def losses(domains: Ids, windows: Ids) -> NDArray[np.float64]:
                return self.gradient.reference_losses(walk.read(domains, windows))

            walk = dataclasses.replace(walk, reference_losses=losses)
        return self.methods.windows(walk)

    def rates(self, step: int) -> dict[str, Any]:
        """Set the learning rates of the step; what is recorded of them."""
        factor = schedule_factor(step, self.config) * self.methods.lr_factor()
        groups = self.rate_groups()
        for group, rate in zip(groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        record: dict[str, Any] = {"lr": groups[0]["lr"]}
        if len(self.optimizers) > 1:
            record["lrs"] = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        return record

    def observe(self, gradient: StepGradient, batch: Batch) -> None:
        """Let stateful methods observe the finished step."""
        if not self.methods.has("observe"):
            return
        assert gradient.view is not None
        post = self.gradient.losses(batch) if self.methods.due("post_losses") else None
        self.methods.observe(
            StepStats(
                view=gradient.view,
                gramian=gradient.gramian,
                group_losses=gradient.group_losses,
                group_weights=gradient.group_weights,
                post_losses=post,
            )
        )

    def probe(
        self, step: int, clock: Clock, batch: Batch | None = None, batch_losses: Tensor | None = None
    ) -> Generator[Request, Answer, None]:
        """Measure and record."""
        with clock.instruments():
            average, terms = self.methods.average(), self.instruments.terms(step)
        losses, seconds = yield self._losses(step, decomposition=terms if average is None else None)
        clock.measured += seconds
        with clock.instruments():
            record = self.instruments.after(
                step, self.model, losses, terms, batch=batch, batch_losses=batch_losses, average=average
            )
        if step in self.instruments.probe_steps:
            found, seconds = yield Interference(step=step, instruments=self.instruments, model=self.model)
            clock.measured += seconds
            record |= found
        self.instruments.forget()
        with clock.instruments():
            self.records.append_probe({"step": step, "tokens": self.tokens, **record})

    def _losses(self, step: int, **more: Any) -> Losses:
        return Losses(step=step, heldout=self.instruments.heldout, model=self.model, **more)
