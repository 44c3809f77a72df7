"""The checkpoints of a model of the hub, `hf:OWNER/NAME`, whose revisions are named by their steps.

    hf:EleutherAI/pythia-14m     step0, step1, step2, step4, ..., step143000
    hf:allenai/OLMo-1B-hf        step1000-tokens4B, ...
    hf:gpt2                      no such revision: its main one, alone

The series lies in ./NAME, and everything in it is as in a series of folders (checkpoint_series.py). While one
checkpoint is measured, the next is fetched, by a thread. Each is deleted when its record is on disk: at most two are
there at a time. Only what lies in NAME/zslx-probe/fetched is ever deleted. With `keep` they go to NAME/step512 and so
on, and stay: then NAME is a series of folders.

A revision is known by its commit: one whose record is of that commit is not fetched again. A download that was cut off
goes on where it was. Weights that a revision has as *.bin alone are read as tensors, nothing else (`weights_only`), and
written as safetensors. Checked by tests/unit/test_hub_series.py against a server that speaks the hub's protocol.

Needs the extra `hf`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zslx.config.hugging_face import PREFIX
from zslx.model.transformer import Model
from zslx.probing.checkpoint_series import FOLDER, STEP, SeriesProbe
from zslx.probing.probe import ProbeSettings

SAFE_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a revision, which names a folder
# A revision's weights: the first of these that it has, with the index that says which shard has which tensor.
WEIGHTS = tuple(
    re.compile(name + r"(-\d+-of-\d+)?" + re.escape(ending) + r"(\.index\.json)?")
    for name, ending in (("model", ".safetensors"), ("pytorch_model", ".bin"))
)


def is_hub(name: str) -> bool:
    return name.startswith(PREFIX)


class HubProbe(SeriesProbe):
    """Measures one model of the hub. `revisions`: names and patterns, with commas; all that have a step where empty."""

    def __init__(self, name: str, settings: ProbeSettings, text: str, *, revisions: str = "", keep: bool = False):
        self.repository, self.keep = name.removeprefix(PREFIX), keep
        self.listed: dict[int, dict[str, int]] = {}  # files of a checkpoint and their bytes
        self.arriving: dict[int, Future[None]] = {}
        self.missing: list[int] = []
        self.commits = self._chosen(revisions)
        folder = Path(self.repository.rpartition("/")[2])
        self._own(folder)
        super().__init__(folder, settings, text)

    def _own(self, folder: Path) -> None:
        """Make the folder, or refuse one that holds another repository of this name: its tokenizer is another."""
        marker = folder / FOLDER / "repository"
        if marker.exists() and (held := marker.read_text()) != self.repository:
            raise ValueError(f"{PREFIX}{self.repository}: {folder} holds {PREFIX}{held}; work in another folder")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(self.repository)

    def checkpoints(self) -> list[Path]:
        place = self.series if self.keep else self.series / FOLDER / "fetched"
        return [place / name for name in self.commits]

    def tokenizer(self) -> Any:
        if not (self.series / "tokenizer.json").exists():
            with self._told("its tokenizer.json"):
                _hub().hf_hub_download(
                    self.repository, "tokenizer.json", revision=next(iter(self.commits.values())), local_dir=self.series
                )
        return super().tokenizer()

    def stamp(self, step: int) -> str:
        return self.commits[self.places[step].name]

    def weights(self, steps: list[int]) -> int:
        """Bytes of the weights; what reading *.bin takes beside them is counted."""
        if not steps:
            return 0
        files = self._files(steps[0])
        return sum(files.values()) * (1 if any(name.endswith(".safetensors") for name in files) else 2)

    def needs(self, steps: list[int]) -> tuple[int, int]:
        disk, memory = super().needs(steps)
        earlier = {self.half(s) for s in steps} - {None} - set(steps)
        apart = any(not self._losses_file(s).exists() for s in earlier if s is not None)
        at_once = len(steps) if self.keep else min(len(steps), 2) + apart
        return disk + at_once * self.weights(steps), memory

    def before(self, steps: list[int], say: Callable[[str], None]) -> None:
        missing = [step for step in steps if step not in self.records()]
        super().before(steps, say)
        if missing:
            each = sum(self._files(missing[0]).values())
            say(f"{self.name}: {len(missing)} × {each / 2**20:.1f} MiB from hf:{self.repository}")

    def begin(self, missing: list[int]) -> None:
        self.missing = missing
        if not self.keep:
            expected = {self.places[step].name for step in missing}
            fetched = self.folder / "fetched"
            for place in fetched.iterdir() if fetched.is_dir() else ():  # what a killed probe left
                if place.name not in expected:
                    shutil.rmtree(place)

    def _model(self, step: int) -> Model:
        self._fetch(step).result()
        return super()._model(step)

    def _read_ahead(self, step: int) -> None:
        for later in self.missing[self.missing.index(step) + 1 :][:1]:
            self._fetch(later)

    def _losses(self, step: int) -> Tensor:
        losses = super()._losses(step)
        self._drop(step)
        return losses

    def _append(self, record: Mapping[str, Any]) -> None:
        super()._append(record)
        self._drop(record["step"])

    def _drop(self, step: int) -> None:
        self.arriving.pop(step, None)
        if not self.keep and self.places[step].exists():
            shutil.rmtree(self.places[step])

    def _fetch(self, step: int) -> Future[None]:
        """Begin to fetch a checkpoint, unless that has begun; the result is there when its files are."""
        if step not in self.arriving:
            self.arriving[step] = done = Future[None]()

            def work() -> None:
                try:
                    self._download(step)
                    done.set_result(None)
                except BaseException as error:
                    done.set_exception(error)

            # A daemon, so that an interruption does not wait for the network.
            threading.Thread(target=work, daemon=True).start()
        return self.arriving[step]

    def _download(self, step: int) -> None:
        place, files = self.places[step], self._files(step)
        with self._told(f"revision {place.name}"):
            _hub().snapshot_download(
                self.repository, revision=self.stamp(step), local_dir=place, allow_patterns=list(files)
            )
        for name, size in files.items():  # where the hub cannot be reached, what is there is returned as if whole
            if not (place / name).exists() or (place / name).stat().st_size != size:
                raise ValueError(f"{self._of(place.name)}: {name} did not arrive whole; the same command goes on")
        as_safetensors(place)

    def _files(self, step: int) -> dict[str, int]:
        """Names and bytes of the files of a checkpoint that are needed."""
        if step not in self.listed:
            name = self.places[step].name
            with self._told(f"revision {name}"):
                tree = list(_hub().list_repo_tree(self.repository, revision=self.stamp(step)))
            sizes = {item.path: int(item.size) for item in tree if hasattr(item, "size")}
            weights = next(filter(None, ([f for f in sizes if form.fullmatch(f)] for form in WEIGHTS)), [])
            if "config.json" not in sizes or not weights:
                raise ValueError(f"{self._of(name)}: no config.json, or no model.safetensors or pytorch_model.bin")
            self.listed[step] = {name: sizes[name] for name in ("config.json", *sorted(weights))}
        return self.listed[step]

    def _chosen(self, revisions: str) -> dict[str, str]:
        """The commit of each revision asked for, by its name."""
        with self._told("its revisions"):
            refs = _hub().list_repo_refs(self.repository)
        there = {r.name: r.target_commit for r in (*refs.branches, *refs.tags) if SAFE_NAME.fullmatch(r.name)}
        stepped = [name for name in there if STEP.fullmatch(name)]
        if not revisions:
            return {name: there[name] for name in stepped or [n for n in there if n == "main"]}
        chosen: dict[str, str] = {}
        for pattern in revisions.split(","):
            found = [n for n in there if n == pattern] or fnmatch.filter(stepped, pattern)
            if not found:
                some = ", ".join(sorted(there)[:8]) + (", ..." if len(there) > 8 else "")
                raise ValueError(f"--revisions: {self._of(pattern)} does not exist; there are {some}")
            chosen |= {name: there[name] for name in found}
        return chosen

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever the hub's client raises, as one line that names the model and what was asked of it."""
        try:
            yield
        except Exception as error:
            line = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"hf:{self.repository}: cannot fetch {what}: {line}") from error

    def _of(self, revision: str) -> str:
        return f"revision {revision!r} of hf:{self.repository}"


def as_safetensors(folder: Path) -> None:
    """Turn a folder's pytorch_model*.bin into model*.safetensors. They are read as tensors, nothing else."""
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    for file in pickled:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}  # tied ones share memory
        except Exception as error:  # of torch or pickle: whatever is wrong is in this file
            raise ValueError(f"{file}: cannot be read as weights: {' '.join(str(error).split())[:200]}") from error
        save_file(whole, folder / _renamed(file.name), {"format": "pt"})
        del tensors, whole
    index = folder / "pytorch_model.bin.index.json"
    if index.exists():
        found = json.loads(index.read_text())
        found["weight_map"] = {name: _renamed(file) for name, file in found["weight_map"].items()}
        (folder / "model.safetensors.index.json").write_text(json.dumps(found))
    for file in pickled:
        file.unlink()


def _renamed(name: str) -> str:
    return name.removeprefix("pytorch_").replace(".bin", ".safetensors")


def _hub() -> Any:
    """The client of the hub (or of HF_ENDPOINT), quiet."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise ValueError("hf:… needs huggingface_hub: pip install 'zslx[hf]'") from error
    disable_progress_bars()
    return HfApi()
