"""Checkpoints: a folder per step with `tensors.safetensors`, `state.json` and, last, `complete.json`.

    RUN/checkpoints/   at powers of two and the last step, for probes and for use as a model: the weights, those before
                       the step's update, what the interventions remember, the place in the data
    RUN/resume/        the last two of those saved every `resume_seconds` and at the end, to go on from: all of the
                       run's state, the optimizer's included

Written to a temporary folder, each file fsynced, then renamed: a checkpoint counts only when complete, and a
kill at any moment leaves the previous one. The state is any nesting of dicts, lists, numbers, texts, tensors and
generators; no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zslx.runs.json_files import dumps, read_json, sync_folder
from zslx.runs.shapes import CHECKPOINT, check

CHECKPOINTS, RESUME = "checkpoints", "resume"
TENSOR, GENERATOR, KEYED = "__tensor__", "__generator__", "__items__"
RESUME_KEPT = 2


def pack(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """`value` as strict JSON, its tensors and generators moved into `tensors` under their paths."""
    if isinstance(value, (torch.Tensor, torch.Generator)):
        name = path
        while name in tensors:  # {"a/b": x} beside {"a": {"b": y}}
            name += "'"
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
        else:
            tensors[name] = value.get_state()
        return {TENSOR if isinstance(value, torch.Tensor) else GENERATOR: name, "device": value.device.type}
    if isinstance(value, dict):
        if wrong := [k for k in value if not isinstance(k, str) and type(k) is not int]:
            raise TypeError(
                f"{path or 'state'}: the key {wrong[0]!r} cannot be kept in a checkpoint; allowed are texts, integers"
            )
        if all(isinstance(k, str) and not k.startswith("__") for k in value):
            return {k: pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
        return {KEYED: [[k, pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}  # integer keys
    if isinstance(value, (list, tuple)):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{path or 'state'}: a {type(value).__name__} cannot be kept in a checkpoint; allowed are "
        "dict, list, tensor, generator, number, text and None"
    )


def unpack(value: Any, tensors: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> Any:
    """The inverse of `pack` (tuples come back as lists); tensors that were off the CPU go to `device`."""
    if isinstance(value, list):
        return [unpack(v, tensors, device) for v in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        tensor = tensors[value[TENSOR]]
        return tensor if value["device"] == "cpu" else tensor.to(device)
    if GENERATOR in value:
        generator = torch.Generator(device="cpu" if value["device"] == "cpu" else device)
        generator.set_state(tensors[value[GENERATOR]])
        return generator
    if KEYED in value:
        return {k: unpack(v, tensors, device) for k, v in value[KEYED]}
    return {k: unpack(v, tensors, device) for k, v in value.items()}


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` under `folder`; returns its path."""
    return write(folder, step, *packed(state))


def packed(state: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """What `write` takes: a copy of the state, as JSON values and tensors."""
    tensors: dict[str, torch.Tensor] = {}
    return pack(state, tensors), tensors


def write(folder: Path, step: int, skeleton: Any, tensors: dict[str, torch.Tensor]) -> Path:
    """Write what `packed` gives; see `save`."""
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = _path(folder, step), folder / f".tmp-{step:09d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        try:
            save_file(tensors, temporary / "tensors.safetensors")
        except SafetensorError as error:  # a full disk
            raise OSError(f"{final}: {error}") from error
        (temporary / "state.json").write_text(json.dumps(skeleton, allow_nan=True))
        files = {name: _digest(temporary / name) for name in ("tensors.safetensors", "state.json")}
        (temporary / "complete.json").write_text(dumps({"step": step, "files": files}))
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, increasing."""
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()) if folder.is_dir() else []


def load(folder: Path, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state saved at `step`. ValueError, naming the file, when a file is missing or altered."""
    path = _path(folder, step)
    complete = read_json(path / "complete.json")
    check(path / "complete.json", complete, CHECKPOINT)
    for name, digest in complete["files"].items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise ValueError(f"{path / name}: missing or altered since it was written")
    tensors = load_file(path / "tensors.safetensors")
    return unpack(json.loads((path / "state.json").read_text()), tensors, device)


def latest(folder: Path, device: torch.device | str = "cpu") -> Iterator[tuple[int, dict[str, Any]]]:
    """Readable checkpoints from the newest backwards; a damaged one is passed over (its step runs again)."""
    for step in reversed(steps(folder)):
        try:
            yield step, load(folder, step, device)
        except (ValueError, OSError):
            continue


def prune(folder: Path, keep: int = RESUME_KEPT) -> None:
    """Remove all but the last `keep` checkpoints."""
    for step in steps(folder)[:-keep]:
        shutil.rmtree(_path(folder, step), ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what killed writers left."""
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:09d}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
