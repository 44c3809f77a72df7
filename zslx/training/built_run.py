"""What a run is made of, and what of it is kept: in memory, in checkpoints, and back.

    built       model, data, optimizers, methods, instruments, records
    keep        the weights of a step, for probes
    save        all that the run needs to go on; written while training goes on (saver.py)
    resume      the newest readable state put back, the records cut to it

What each kind of checkpoint holds: zslx/runs/checkpoints.py. The steps themselves: loop.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zslx.config.groups import ParameterCount
from zslx.config.run_config import Config
from zslx.gradients import TokenSums, parameter_roles
from zslx.instruments.during_training import Instruments
from zslx.instruments.heldout import HeldOut
from zslx.intervention import registry
from zslx.intervention.base import Intervention, RunView
from zslx.intervention.composed import InterventionError, Methods
from zslx.model.hugging_face import check_tokenizer
from zslx.model.optimization import adamw, parameter_groups
from zslx.model.transformer import Model, build_model
from zslx.model.weights import load_weights
from zslx.runs import checkpoints
from zslx.runs.identity import device_kind
from zslx.runs.integrity import gap
from zslx.runs.load import reference_actions, reference_model
from zslx.runs.records import RunRecords
from zslx.seeds import generator
from zslx.text import token_cache
from zslx.text.loader import Loader, control, heldout
from zslx.training.control_set import NEEDS as CONTROL_NEEDS
from zslx.training.control_set import ControlSet
from zslx.training.gradient_pass import GradientPass
from zslx.training.malloc import keep_freed_memory
from zslx.training.saver import Saver


class BuiltRun:
    """A run in memory: model, data, optimizer, interventions, instruments, records.

    `methods` stand in for those that the configuration names (the tests' way to try a class without a name). What makes
    gradients, held-out losses and measurements is a class attribute, so that a run on several processes has its own.
    """

    gradient_pass: type[GradientPass] = GradientPass
    held_out: type[HeldOut] = HeldOut
    measuring: type[Instruments] = Instruments

    def __init__(self, config: Config, out: Path, methods: Sequence[Intervention] | None = None):
        self.config, self.out = config, out
        keep_freed_memory()
        torch.set_num_threads(config.train.threads)
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
        torch.use_deterministic_algorithms(config.train.deterministic)
        self.device = torch.device(device_kind(config).split()[0])
        corpus = token_cache.corpus_of(config.data)
        data, seed = config.data, config.train.seed
        self.loader = Loader(
            corpus, seed=seed, batch_size=data.batch_size, seq_len=data.seq_len, device=str(self.device)
        )
        check_tokenizer(config.model, corpus.tokenizer)
        self.model = self.placed(build_model(config, corpus.vocab_size, generator(seed, "initial weights")))
        methods = registry.load_spec(config.intervention, config.settings) if methods is None else methods
        counts = torch.as_tensor(corpus.token_counts)
        view = RunView(
            steps=config.train.steps,
            seq_len=data.seq_len,
            batch_size=data.batch_size,
            domains=corpus.domains,
            domain_tokens=[len(stream) for stream in corpus.train],
            token_counts=counts,
            parameters=self.shown(),
            roles=parameter_roles(self.model),
            config=config,
        )
        self.methods = Methods(methods, view)
        if self.methods.has("depth"):
            self.model.begin_with(self.methods.depth())
        view.depth = self.model.depth
        names = [method.name.rpartition(":")[2] for method in self.methods.needing("reference_actions")]
        view.reference_actions = {name: reference_actions(config.reference, name) for name in names}
        reference = None
        if needing := self.methods.needing("reference_losses"):
            reference = reference_model(config.reference, needing[0].name).to(self.device)
        self.gradient = self.gradient_pass(
            self.model,
            self.methods,
            dtype=config.train.dtype,
            reference=reference,
            compiled=config.train.compile,
            micro_batch=config.train.micro_batch,
        )
        groups = parameter_groups(self.model, config.optim)
        made = self.methods.optimizers(groups) if self.methods.has("optimizer") else None
        self.optimizers = made or [adamw(groups, config.optim)]
        self.base_rates = [g["lr"] for g in self.rate_groups()]
        self.control = None
        if self.methods.needs & set(CONTROL_NEEDS):
            fixed = control(corpus, sequences=data.batch_size, seq_len=data.seq_len).to(self.device)
            self.control = ControlSet(fixed, self.methods, self.gradient)
        fixed = heldout(corpus, sequences=data.heldout_sequences, seq_len=data.seq_len).to(self.device)
        chunk = config.train.micro_batch or data.batch_size
        held = self.held_out(fixed, corpus.domains, token_counts=counts, chunk=chunk, dtype=config.train.dtype)
        self.instruments = self.measuring(config, held)
        self.records, self.saver = self.recorded(), Saver()
        self.tokens = self.tokens_written = 0
        self.lines: list[dict[str, Any]] = []  # of steps whose numbers are not here yet
        self.loss = math.nan  # of the last step that was written

    def placed(self, model: Model) -> Model:
        """The model where it trains."""
        return model.to(self.device)

    def shown(self) -> Mapping[str, Tensor]:
        """The parameters as the methods see them."""
        return dict(self.model.named_parameters())

    def recorded(self) -> RunRecords:
        """What takes the lines of the run."""
        return RunRecords(self.out)

    def rate_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def parameter_count(self) -> ParameterCount:
        """Numbers of parameters, as they are built; a tied table counts once."""
        count = {True: 0, False: 0}
        for name, p in self.model.named_parameters():
            count[self.methods.run.roles[name].group in ("embedding", "unembedding")] += p.numel()
        return ParameterCount(non_embedding=count[False], embedding=count[True], total=sum(count.values()))

    def keep(self, step: int, before: dict[str, Tensor]) -> None:
        """Keep the weights of this step, and those before its update, for probes."""
        self._write(checkpoints.CHECKPOINTS, step, self._measured() | {"before": before})

    def save(self, step: int) -> None:
        """Keep all that the run needs to go on. Records first: every line up to the step is on disk when it counts."""
        self.records.flush(sync=True)
        state = self._measured() | {
            "optimizer": [optimizer.state_dict() for optimizer in self.optimizers],
            "instruments": self.instruments.state,
        }
        if self.control:
            state["control"] = self.control.state
        if self.methods.run.token_sums is not None:
            state["token_sums"] = vars(self.methods.run.token_sums)
        self._write(checkpoints.RESUME, step, state)

    def _measured(self) -> dict[str, Any]:
        """What every kind of checkpoint holds."""
        grown = {"depth": self.model.depth} if self.methods.has("depth") else {}
        return grown | {
            "model": dict(self.model.named_parameters()),
            "data": self.loader.state_dict(),
            "interventions": self.methods.states,
            "tokens": self.tokens,
        }

    def _write(self, kind: str, step: int, state: dict[str, Any]) -> None:
        try:
            packed = checkpoints.packed(state)
        except TypeError as error:  # a method's state: the rest is the trainer's own
            raise InterventionError(f"intervention state at step {step}: {error}") from None

        def write(folder: Path = self.out / kind) -> None:
            checkpoints.write(folder, step, *packed)
            checkpoints.clear(folder)
            if kind == checkpoints.RESUME:
                checkpoints.prune(folder)

        self.saver.start(write)

    def resume(self, continued_from: int = 0) -> int:
        """Restore the newest readable state and cut the records back to it; its step, 0 where there is none.

        Up to step `continued_from` the held-out curve has the points of a shorter run.
        """
        # Earlier versions kept the whole state with the weights.
        kinds = (checkpoints.RESUME, checkpoints.CHECKPOINTS)
        for step, state in chain(*(checkpoints.latest(self.out / kind, self.device) for kind in kinds)):
            points = {s for s in self.instruments.heldout_steps if continued_from < s <= step}
            if "optimizer" not in state or gap(self.out, step, points):
                continue  # where lines were lost an older state may still fit what is there
            self.records.cut_to(step)
            self.restore(state)
            return step
        self.records.cut_to(0)
        for name in ("steps", "probes", "timing"):  # step 0's own probe is measured again
            (self.out / f"{name}.jsonl").unlink(missing_ok=True)
        return 0

    def restore(self, state: dict[str, Any]) -> None:
        """Put the run where it stood when the whole `state` was saved."""
        self.restore_weights(state)
        saved = state["optimizer"]
        for optimizer, kept in zip(self.optimizers, saved if isinstance(saved, list) else [saved], strict=True):
            optimizer.load_state_dict(kept)
        self.instruments.state = state["instruments"]
        if self.control:
            self.control.state = state["control"]
        if "token_sums" in state:
            self.methods.run.token_sums = TokenSums(**state["token_sums"])

    def restore_weights(self, state: dict[str, Any]) -> None:
        """Put into place what every kind of checkpoint holds: enough to measure, not to go on."""
        load_weights(self.model, state["model"])
        self.model.depth = self.methods.run.depth = state.get("depth", self.model.depth)
        self.loader.load_state_dict(state["data"])
        for name, kept in state["interventions"].items():  # in place: a method's optimizer may hold its state
            self.methods.states[name].clear()
            self.methods.states[name].update(kept)
        self.tokens = self.tokens_written = state["tokens"]
