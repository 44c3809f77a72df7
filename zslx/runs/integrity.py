"""Whether the records of a run are whole: nothing cut off, nothing missing in the middle, nothing changed.

A finished run's manifest keeps size and sha256 of each records file. Runs of earlier versions have no such entry; their
records are compared with what the configuration asks for, step by step. So are the records of a run that is about to
be resumed or to be called finished. Torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from zslx.instruments.measuring_steps import heldout_steps
from zslx.runs.json_files import loads
from zslx.runs.records import LINE_FILES, Run


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each records file, for the manifest."""
    found = {}
    for name in LINE_FILES:
        path = folder / f"{name}.jsonl"
        if path.exists():
            found[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return found


def sha256(path: Path) -> str:
    """Of a file, read in blocks: records of a long run have hundreds of megabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measured_steps(config: Mapping[str, Any]) -> set[int]:
    """The steps at which a run of this configuration adds a line to probes.jsonl."""
    chosen = config["instruments"]
    return set(heldout_steps(config["train"]["steps"], chosen["heldout_points"], chosen["probes"]))


def fault(run: Run) -> str:
    """Why the records of a finished or diverged run are not whole; empty if they are."""
    try:
        last, asked = run.manifest["totals"]["steps"], run.config["train"]["steps"]
        if not isinstance(last, int) or last > asked or (run.status == "finished" and last < asked):
            return f"{run.folder / 'manifest.json'}: {run.status} at step {last} of {asked}"
        if isinstance(kept := run.manifest.get("records"), dict):
            return _changed(run.folder, kept)
        done = last - (run.status == "diverged")  # the step that diverged has a line, and no probe
        return gap(run.folder, last, {s for s in measured_steps(run.config) if s <= done})
    except (KeyError, TypeError):
        return f"{run.folder}: config.json and manifest.json do not say which steps there must be"


def _changed(folder: Path, kept: Mapping[str, Any]) -> str:
    for name, was in kept.items():
        path = folder / f"{name}.jsonl"
        if not isinstance(was, dict) or name not in LINE_FILES:
            return f"{folder / 'manifest.json'}: records.{name} is no size and checksum of a records file"
        if not path.exists():
            return f"{path}: it is gone"
        if (size := path.stat().st_size) != was.get("bytes"):
            return f"{path}: {size} bytes, and {was.get('bytes')} when the run finished: it was cut or changed"
        if sha256(path) != was.get("sha256"):
            return f"{path}: it was changed since the run finished"
    return ""


def gap(folder: Path, last: int, probes: Collection[int]) -> str:
    """What is missing from the records of a run that stands at step `last`; empty if nothing is.

    steps.jsonl must have each step from 1 to `last`, and probes.jsonl each of `probes`.
    """
    for name, wanted in (("steps", range(1, last + 1)), ("probes", sorted(probes))):
        path = folder / f"{name}.jsonl"
        try:
            have = set(_steps_in(path))
        except ValueError as error:
            return str(error)
        if absent := [step for step in wanted if step not in have]:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            return f"{path}: no line for step {absent[0]}{more}"
    return ""


def _steps_in(path: Path) -> Iterable[int]:
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # what has no line end was never finished
        try:
            yield int(loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
