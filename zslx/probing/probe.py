"""Everything there is to measure at the checkpoints of a finished run, into RUN/probe.jsonl.

At the checkpoint of step t, θ the weights there, on the fixed held-out set unless said otherwise:

    heldout_loss, decomposition   as in training: of the weights that the arm would ship; where those are averaged,
                    `heldout_loss_trained` is of the weights that train, as is everything below
    dt1_heldout     D and M of the loss changes by the run's own update t−1 → t, clipped as it was. The paper takes an
                    unclipped update
    update_norm     ‖Δθ‖ of that update
    dtt             D and M of the changes from t/2 to t, where there is a checkpoint at t/2. Both have `by_domain`:
                    D within and between the domains
    grad_sequence   exact over the `gradient_sequences` of the run's configuration (16 where it has none), with a
                    histogram of c_j over the body's coordinates (100 bins on [0, 1])
    grad_position   the one-product proxy, the same sequences
    grad_token      over all held-out tokens, the denominator from n of them
    first_order     C_g, C_ug, C_uG of that update, D(Δℓ̂), M(Δℓ̂), and `error` = Σ|Δℓ − Δℓ̂| / Σ|Δℓ|: how far
                    the first-order changes are from the true ones; `relative_se` is C_g's and C_ug's, from the sample

A record a checkpoint and a setting; one that is there is not measured again, so a killed probe goes on. The run's
own files are only read. Losses and gradients are computed in float32 at least, also where the run trained in
bfloat16 (its update is taken as it trained). Every draw comes from the run's seed and the step: measured again,
the numbers are the same.
Cost: about 1.5 n/B + 20 training steps a checkpoint. Checked by tests/unit/test_probe.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zslx.config.hugging_face import library
from zslx.config.run_config import Config
from zslx.gradients import norm
from zslx.instruments.gradient_interference import GradientSample, over_sequences, over_tokens, update_effect
from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.locking import locked
from zslx.model.export import as_hugging_face
from zslx.model.weights import load_weights
from zslx.probing.series import run_label
from zslx.runs import checkpoints
from zslx.runs.json_files import JsonLines, read_lines
from zslx.runs.records import OVER, read_config, read_manifest
from zslx.seeds import generator
from zslx.text import token_cache
from zslx.text.loader import heldout
from zslx.training.loop import TrainingRun

FILE = "probe.jsonl"
CHANCE_DRAWS = 8  # of random signs over sequences
DRAWS = {"token sample": "tokens"}  # the name under which a probe has always drawn its tokens
SEQUENCES = 16  # of the gradient interference, where the run's configuration has none
STAGES = ("losses", "sequence gradients", "token gradients", "update")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Sampled tokens n ("all": exact), and the held-out set (0: as in the run)."""

    n: int | str = 1024
    sequences: int = 0
    seq_len: int = 0

    def key(self, identity: str) -> str:
        """16 hex of what the numbers depend on: these settings and the run."""
        text = json.dumps([identity, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Probe:
    """Measures checkpoints one by one into FOLDER/probe.jsonl. `available` are their steps."""

    def __init__(self, folder: Path, settings: ProbeSettings, identity: str, available: list[int]):
        self.folder, self.settings, self.available = folder, settings, available
        self.key = settings.key(identity)

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.folder.name

    @property
    def label(self) -> str:
        """The name in figures."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Parameters without embedding, unembedding and learned positions."""
        raise NotImplementedError

    def _at(self, step: int, at: Callable[[str], None]) -> dict[str, Any]:
        """Measure the checkpoint of a step, saying which of STAGES begins."""
        raise NotImplementedError

    def steps(self, wanted: list[int] | None = None) -> list[int]:
        """The checkpoints to measure: those asked for, or powers of two and the last."""
        if wanted is None:
            return [s for s in self.available if s & (s - 1) == 0 or s == self.available[-1]]
        if missing := sorted(set(wanted).difference(self.available)):
            steps = ", ".join(map(str, self.available))
            raise ValueError(f"{self.folder}: no checkpoint at step {', '.join(map(str, missing))}; there are {steps}")
        return sorted(set(wanted))

    def records(self) -> dict[int, dict[str, Any]]:
        """What was measured with these settings before, by step."""
        path = self.folder / FILE
        lines = read_lines(path) if path.exists() else []
        return {line["step"]: line for line in lines if line.get("probe") == self.key and self.current(line)}

    def current(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of the checkpoints that are there."""
        return True

    def before(self, steps: list[int], say: Callable[[str], None]) -> None:
        """Called before anything is measured."""

    def begin(self, missing: list[int]) -> None:
        """Called before the first of `missing` is measured, when no other process measures here."""

    def measure(self, steps: list[int], progress: Callable[[float, str], None]) -> dict[int, dict[str, Any]]:
        """The records of `steps`, in their order; those that are missing are measured and appended one by one."""
        self.folder.mkdir(exist_ok=True)
        with locked(self.folder / ".probe.lock"):
            JsonLines(self.folder / FILE).cut()  # what a killed probe was writing
            found = self.records()
            missing = [step for step in steps if step not in found]
            self.begin(missing)
            for i, step in enumerate(missing):

                def at(stage: str, done: int = i, step: int = step) -> None:
                    share = (done + STAGES.index(stage) / len(STAGES)) / len(missing)
                    progress(share, f"step {step}, {stage}")

                found[step] = self._at(step, at)
                self._append(found[step])
        return {step: found[step] for step in steps}

    def _append(self, record: Mapping[str, Any]) -> None:
        with JsonLines(self.folder / FILE) as file:
            file.append(record)
            file.flush()


class RunProbe(Probe):
    """Measures one run."""

    def __init__(self, folder: str | Path, settings: ProbeSettings, text: str = ""):
        """`text`: where the run's text lies now, if not at its `data.path`."""
        run = Path(folder)
        self.config = Config.from_dict(read_config(run))
        manifest = read_manifest(run)
        if manifest["status"] not in OVER:
            raise ValueError(f"{folder}: the run is {manifest['status']}, not finished; zslx train goes on with it")
        available = checkpoints.steps(run / checkpoints.CHECKPOINTS)
        super().__init__(run, settings, str(manifest.get("identity")), available)
        if not self.available:
            raise ValueError(f"{folder}: no checkpoints to measure")
        self.measured_on = str(manifest.get("ingredients", {}).get("corpus"))
        self._check_text(manifest, text)
        self._check_reference(manifest)
        self.losses: dict[int, Tensor] = {}  # held-out losses by step

    def _check_text(self, manifest: Mapping[str, Any], text: str) -> None:
        """Refuse any text but the one that the run was trained on: a folder from elsewhere may name any path here."""
        data = self.config.data
        if text:
            data = dataclasses.replace(data, path=text)
            self.config = dataclasses.replace(self.config, data=data)
        recorded = manifest.get("ingredients", {}).get("corpus")
        if recorded is None and (text or not data.path):
            return  # an old run: nothing to compare with, but the user named the text, or it is the embedded one
        if recorded is None:
            raise ValueError(
                f"{self.folder}: the run recorded no hash of its text data.path={data.path!r}; "
                "give --text PATH to use the text at PATH"
            )
        if token_cache.corpus_of(data).hash != recorded:
            raise ValueError(
                f"{self.folder}: {'--text' if text else 'data.path'}={data.path!r} is not the text that the run was "
                "trained on (its hash differs); give --text PATH with the path of that text"
            )

    def _check_reference(self, manifest: Mapping[str, Any]) -> None:
        """Refuse any reference model but the one that the run was trained with. Its identity covers its text."""
        recorded = manifest.get("ingredients", {}).get("config", {}).get("reference")
        if recorded and read_manifest(self.config.reference).get("identity") != recorded:
            raise ValueError(
                f"{self.folder}: reference={self.config.reference!r} is not the run that it was trained with "
                f"(that one's identity is {recorded})"
            )

    @property
    def label(self) -> str:
        return run_label(self.folder, self.config)

    @property
    def parameters(self) -> int:
        """Parameters without embedding, unembedding and learned positions."""
        counted = read_manifest(self.folder).get("parameters")
        return int(counted["non_embedding"]) if counted else self.config.model.parameters().non_embedding

    def _at(self, step: int, at: Callable[[str], None]) -> dict[str, Any]:
        at("losses")
        run, heldout, state = self.restored(step)
        terms = Decomposition(self.config.instruments.rank_bins)
        average = run.methods.average()
        losses = heldout.losses(run.model, decomposition=terms if average is None else None)
        shipped = heldout.shipped(run.model, losses, average, terms)
        self.losses[step] = losses
        record = {"step": step, "probe": self.key, "settings": dataclasses.asdict(self.settings)}
        record |= {"tokens": run.tokens, **shipped, "decomposition": terms.record()}
        if step % 2 == 0 and step // 2 in self.available:
            record["dtt"] = {"from": step // 2} | heldout.interference(losses - self._losses_at(step // 2))
        at("sequence gradients")
        sample = self._sample(step)
        record |= over_sequences(run.model, heldout, sample)
        at("token gradients")
        record |= over_tokens(run.model, heldout, sample)
        at("update")
        if "before" in state:  # earlier versions did not keep it
            record |= self._update(run.model, heldout, sample, state["before"], losses)
        return record

    def _update(
        self, model: nn.Module, heldout: HeldOut, sample: GradientSample, before: dict[str, Tensor], after: Tensor
    ) -> dict[str, Any]:
        """What the update from the weights `before` did to the held-out losses, now `after`; leaves `before` in place.

        Nothing where the update changed nothing: a method may skip it.
        """
        update = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        if not any(bool(u.any()) for u in update.values()):
            return {}
        load_weights(model, before)
        return {
            "update_norm": norm(update.values()),
            "dt1_heldout": heldout.interference(after - heldout.losses(model)),
            "first_order": update_effect(model, heldout, sample, update),
        }

    def restored(self, step: int) -> tuple[TrainingRun, HeldOut, dict[str, Any]]:
        """The run with the weights after `step`, in memory, the held-out set of this probe, and the checkpoint."""
        config, own = self.config, self.config.data
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=False))
        run = TrainingRun(config, self.folder)
        state = checkpoints.load(self.folder / checkpoints.CHECKPOINTS, step, run.device)
        run.restore_weights(state)
        length = self.settings.seq_len or own.seq_len
        if (config.model.positions == "learned" or config.model.hf) and length > config.model.max_positions:
            raise ValueError(f"--seq-len {length}: the model has {config.model.max_positions} positions")
        corpus = token_cache.corpus_of(own)
        batch = heldout(corpus, sequences=self.settings.sequences or own.heldout_sequences, seq_len=length)
        chunk = max(1, own.batch_size * own.seq_len // length)
        counts = torch.as_tensor(corpus.token_counts)
        fixed = HeldOut(
            batch.to(run.device), corpus.domains, token_counts=counts, chunk=chunk, dtype=config.train.dtype
        )
        return run, fixed, state

    def exported(self, step: int) -> tuple[Any, Any]:
        """The model after `step`, as the arm would ship it, and its tokenizer, as classes of transformers.

        ValueError where transformers has no class that computes the same.
        """
        trained, _, _ = self.restored(step)
        average = trained.methods.average()
        if average is not None:
            load_weights(trained.model, average)
        tokenizer, end = trained.loader.corpus.tokenizer, trained.loader.corpus.end_of_text
        model = as_hugging_face(trained.model, self.config.data.seq_len, end)
        fast = library().PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tokenizer.id_to_token(end))
        return model, fast

    def _losses_at(self, step: int) -> Tensor:
        if step not in self.losses:
            run, heldout, _ = self.restored(step)
            self.losses[step] = heldout.losses(run.model)
        return self.losses[step]

    def _sample(self, step: int) -> GradientSample:
        """What is measured over: other draws than those of the run's own instruments."""
        return GradientSample(
            sequences=self.config.instruments.gradient_sequences or SEQUENCES,
            tokens=self.settings.n,
            draws=lambda purpose: generator(self.config.train.seed, "probe", DRAWS.get(purpose, purpose), step),
            signs=CHANCE_DRAWS,
            histogram=True,
        )
