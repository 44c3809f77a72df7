"""Everything there is to measure on a series of checkpoints that others trained, into SERIES/zslx-probe.

    SERIES/step0, step512, ...                       folders as the hub's revisions are named: Pythia's
    SERIES/stage1-step1000-tokens5B, ...             OLMo's

Each has a config.json and *.safetensors; the tokenizer.json lies in SERIES or in one of them. SERIES may also be a
single checkpoint; a name without a step counts as step 0. All are measured on one fixed probe text: its first tokens
under that tokenizer, in equal parts of its domains. At the checkpoint of step t:

    heldout_loss    mean loss on the probe text; decomposition: of the same losses
    dtt             D and M of the changes of token losses from t/2 to t; `from` names the checkpoint, which is the one
                    nearest to t/2, within 7 %
    grad_sequence, grad_position, grad_token   as on a run's checkpoints (probe.py)

One checkpoint is in memory at a time, in float32, while the next is read ahead. Of each, `losses/` keeps the losses of
its tokens (float32, memory-mapped when read) and `probe.jsonl` its record. What is there is not measured again, so a
killed probe goes on; a checkpoint whose files changed is. Checked by tests/unit/test_checkpoint_series.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from zslx.config.groups import DataConfig, TrainConfig
from zslx.config.hugging_face import PREFIX
from zslx.config.run_config import Config
from zslx.config.sizes import model_preset
from zslx.gradients import parameter_roles
from zslx.instruments.gradient_interference import GradientSample, over_sequences, over_tokens
from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.transformer import Model, build_model
from zslx.probing.probe import CHANCE_DRAWS, SEQUENCES, Probe, ProbeSettings
from zslx.runs.json_files import write_atomic
from zslx.seeds import generator
from zslx.text import documents
from zslx.text.loader import Batch

STEP = re.compile(r"(?:.*[-_])?step(\d+)(?:-tokens(\d+)([KMBT]?))?")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
LENGTH, TEXT_SEQUENCES = 512, 64  # of the probe text, where nothing else is asked for
NEAR = 0.1  # of log2: how far from t/2 the earlier checkpoint may lie
FOLDER = "zslx-probe"


def is_series(folder: Path) -> bool:
    """Whether a folder holds checkpoints in folders named by their steps, or is a checkpoint itself."""
    if not folder.is_dir():
        return False
    return _single(folder) or any(STEP.fullmatch(p.name) and (p / "config.json").exists() for p in folder.iterdir())


def _single(folder: Path) -> bool:
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))


class SeriesProbe(Probe):
    """Measures one series. `text`: a file, folder or glob of text."""

    def __init__(self, folder: str | Path, settings: ProbeSettings, text: str):
        self.series = Path(folder)
        if not text:
            raise ValueError(f"{folder}: give --text PATH, the text on which the checkpoints are measured")
        self.places: dict[int, Path] = {}
        self.tokens: dict[int, int] = {}
        for place in self.checkpoints():
            found = STEP.fullmatch(place.name)
            step = int(found[1]) if found else 0
            if step in self.places:
                raise ValueError(
                    f"{folder}: {self.places[step].name} and {place.name} are both of step {step}; keep or choose one"
                )
            self.places[step] = place
            if found and found[2]:
                self.tokens[step] = int(found[2]) * UNITS[found[3]]
        length, sequences = settings.seq_len or LENGTH, settings.sequences or TEXT_SEQUENCES
        settings = dataclasses.replace(settings, sequences=sequences, seq_len=length)
        self.text = probe_text(text, self.tokenizer(), sequences, length)
        self.measured_on = self.text.digest
        super().__init__(self.series / FOLDER, settings, self.text.digest, sorted(self.places))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints."""
        if _single(self.series):
            return [self.series.absolute()]
        return [place for place in sorted(self.series.iterdir()) if STEP.fullmatch(place.name) and place.is_dir()]

    def tokenizer(self) -> Tokenizer:
        for place in (self.series, *self.places.values()):
            file = place / "tokenizer.json"
            if file.exists():
                try:
                    return Tokenizer.from_file(str(file))
                except Exception as error:  # tokenizers raises no narrower one
                    raise ValueError(f"{file}: cannot be read as a tokenizer: {_line(error)}") from error
        raise ValueError(f"{self.series}: no tokenizer.json in it or in one of its checkpoints")

    @property
    def name(self) -> str:
        return self.series.name

    label = name

    @property
    def parameters(self) -> int:
        """Parameters without embedding, unembedding and learned positions."""
        return int(next(iter(self.records().values()))["parameters"])

    def steps(self, wanted: list[int] | None = None) -> list[int]:
        """The checkpoints to measure: those asked for, or all."""
        return super().steps(self.available if wanted is None else wanted)

    def stamp(self, step: int) -> str:
        """Tells whether the files of a checkpoint are those that were measured."""
        files = sorted(self.places[step].glob("*.safetensors"))
        stats = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]

    def current(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of the files that are there."""
        step = record["step"]
        known = step in self.places and record.get("weights") == self.stamp(step)
        return known and self._losses_file(step).exists()

    def needs(self, steps: list[int]) -> tuple[int, int]:
        """Bytes of disk for the losses of `steps`, and about how many of memory: the largest weights in float32 with
        as much again for gradients, activations of a few sequences, their logits."""
        each = 4 * self.settings.sequences * self.settings.seq_len
        logits = 4 * self.chunk * self.settings.seq_len * self.text.vocabulary
        return each * len(steps), 4 * self.weights(steps) + 3 * logits

    def weights(self, steps: list[int]) -> int:
        """Bytes of the largest weights among `steps`."""
        return max((sum(f.stat().st_size for f in self.places[s].glob("*.safetensors")) for s in steps), default=0)

    @property
    def chunk(self) -> int:
        """Sequences of one pass: so many that it has about 4,096 tokens."""
        return max(1, 4096 // self.settings.seq_len)

    def before(self, steps: list[int], say: Callable[[str], None]) -> None:
        """Say what it takes; ValueError where there is no room for it."""
        missing = [step for step in steps if step not in self.records()]
        disk, memory = self.needs(missing)
        if not missing:
            return
        room = shutil.disk_usage(self.series).free
        say(
            f"{self.series.name}: {len(missing)} checkpoints, {disk / 2**20:.1f} MiB on disk, about "
            f"{memory / 2**30:.2f} GiB of memory"
        )
        if disk > room:
            raise ValueError(f"{self.series}: it takes {disk} bytes of disk and there are {room}")

    def _at(self, step: int, at: Callable[[str], None]) -> dict[str, Any]:
        at("losses")
        stamp, model = self.stamp(step), self._model(step)
        self._read_ahead(step)
        heldout = self.heldout
        terms = Decomposition("rank")
        losses = heldout.losses(model, decomposition=terms)
        if not bool(torch.isfinite(losses).all()):
            raise ValueError(f"{self.places[step]}: its losses are not finite")
        self._keep(step, losses)
        roles = parameter_roles(model)
        outside = ("embedding", "unembedding")
        record: dict[str, Any] = {"step": step, "probe": self.key, "weights": stamp}
        record |= {"settings": dataclasses.asdict(self.settings), "checkpoint": self.places[step].name}
        record["parameters"] = sum(p.numel() for n, p in model.named_parameters() if roles[n].group not in outside)
        record |= {"tokens": self.tokens[step]} if step in self.tokens else {}
        record |= heldout.record(losses) | {"decomposition": terms.record()}
        if (earlier := self.half(step)) is not None:
            record["dtt"] = {"from": earlier} | heldout.interference(losses - self._losses(earlier))
        at("sequence gradients")
        record |= over_sequences(model, heldout, self._sample(step))
        at("token gradients")
        return record | over_tokens(model, heldout, self._sample(step))

    def half(self, step: int) -> int | None:
        """The checkpoint nearest to step/2, if it is near."""
        if step < 2:
            return None
        earlier = [s for s in self.available if 0 < s < step]
        nearest = min(earlier, key=lambda s: abs(math.log2(2 * s / step)), default=None)
        return nearest if nearest is not None and abs(math.log2(2 * nearest / step)) <= NEAR else None

    @cached_property
    def heldout(self) -> HeldOut:
        text = self.text
        return HeldOut(
            text.batch.to(self.device), text.domains, token_counts=text.counts, chunk=self.chunk, dtype="float32"
        )

    def _model(self, step: int) -> Model:
        place = self.places[step]
        architecture = model_preset(f"{PREFIX}{place}")
        if not architecture.pretrained:
            raise ValueError(f"{place}: no *.safetensors")
        config = Config(
            model=architecture, data=DataConfig(seq_len=self.settings.seq_len), train=TrainConfig(device="cpu")
        )
        return build_model(config, self.text.vocabulary, generator(0, "probe")).to(self.device)

    def _read_ahead(self, step: int) -> None:
        """Let the system read the next checkpoint while this one is measured."""
        later = [s for s in self.available if s > step]
        if not later or not hasattr(os, "posix_fadvise"):
            return
        for file in self.places[later[0]].glob("*.safetensors"):
            with contextlib.suppress(OSError), open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _losses_file(self, step: int) -> Path:
        return self.folder / "losses" / f"{self.key}-{step:09d}.npy"

    def _keep(self, step: int, losses: Tensor) -> None:
        file, written = self._losses_file(step), io.BytesIO()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(written, losses.float().cpu().numpy())
        write_atomic(file, written.getvalue())

    def _losses(self, step: int) -> Tensor:
        """Losses (S, T) of a checkpoint: kept, or of a pass of their own where it was not asked for."""
        if not self._losses_file(step).exists():
            self._keep(step, self.heldout.losses(self._model(step)))
        return torch.from_numpy(np.array(np.load(self._losses_file(step), mmap_mode="r"))).to(self.device)

    def _sample(self, step: int) -> GradientSample:
        return GradientSample(
            sequences=min(SEQUENCES, self.chunk),
            tokens=self.settings.n,
            draws=lambda purpose: generator(0, "probe", purpose, step),
            signs=CHANCE_DRAWS,
            histogram=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeText:
    """The fixed sequences on which every checkpoint is measured. counts (V,): occurrences among its targets."""

    batch: Batch
    domains: tuple[str, ...]
    counts: Tensor
    vocabulary: int
    digest: str


def probe_text(path: str, tokenizer: Tokenizer, sequences: int, length: int) -> ProbeText:
    """The first tokens of each domain's text, in windows of `length` + 1. ValueError where they are too few."""
    try:
        domains, _ = documents.folder(path)
    except ValueError as error:
        raise ValueError(str(error).replace("data.path=", "--text ")) from None
    rows, names = [], tuple(domain.name for domain in domains)
    for i, domain in enumerate(domains):
        count = sequences * (i + 1) // len(domains) - sequences * i // len(domains)
        wanted, ids = count * (length + 1), list[int]()
        for block in (block for document in domain.documents for block in document.blocks()):
            ids += tokenizer.encode(block, add_special_tokens=False).ids
            if len(ids) >= wanted:
                break
        if len(ids) < wanted:
            raise ValueError(
                f"--text {path}: domain {domain.name!r} has {len(ids)} tokens, and {count} sequences of {length} need "
                f"{wanted}; allowed are fewer or shorter ones (--sequences, --seq-len)"
            )
        rows += [(i, ids[at : at + length + 1]) for at in range(0, wanted, length + 1)]
    windows = torch.tensor([row for _, row in rows])
    batch = Batch(tokens=windows[:, :-1], targets=windows[:, 1:], domains=torch.tensor([i for i, _ in rows]))
    vocabulary = tokenizer.get_vocab_size()
    return ProbeText(
        batch=batch,
        domains=names,
        counts=torch.bincount(batch.targets.flatten(), minlength=vocabulary),
        vocabulary=vocabulary,
        digest=hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
