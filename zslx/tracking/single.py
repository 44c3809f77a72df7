"""Logs one run, trained by `zslx train` or measured by `zslx probe`, to wandb and to event files in its own folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zslx.runs.json_files import write_json
from zslx.runs.records import OVER, Run, read_manifest, read_run
from zslx.tracking.event_files import EventFiles
from zslx.tracking.rows import Rows, dated, leaves
from zslx.tracking.stream import Feed, Sink, finish, streaming
from zslx.tracking.summary import about, summary
from zslx.tracking.wandb_run import WandbRun, run_id

LOGGED = ".logged.json"  # in the folder of a tool's files: all rows of this run are there


@contextlib.contextmanager
def followed(folder: Path, wandb: str, tensorboard: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Train the run in `folder` inside this context: it is streamed to wandb (online) and to event files, and what is
    lacking is logged from its records when it is over. `say` is told what went wrong; the run is not harmed."""
    feeds: dict[Path, Feed] = {}
    if wandb == "online":
        feeds[folder / "wandb"] = Feed(folder, lambda run: _wandb(run, wandb, "train"))
    if tensorboard:
        feeds[folder / "tensorboard"] = Feed(folder, lambda run: EventFiles(folder / "tensorboard"))
    feeds = {place: feed for place, feed in feeds.items() if not (place / LOGGED).exists()}
    try:
        with streaming(feeds.values()):
            yield
        if wandb == "offline" and not (folder / "wandb" / LOGGED).exists():
            feeds[folder / "wandb"] = Feed(folder, lambda run: _wandb(run, wandb, "train"))
    finally:
        status = _status(folder)
        for place, feed in feeds.items():
            try:
                if status not in OVER:  # it goes on with the next command
                    if feed.sink:
                        feed.sink.close(ok=status == "paused")
                    continue
                run = read_run(folder)
                rows, live = Rows(folder).new(whole=True), None if feed.wrong else feed.sink
                finish(
                    live or _made(feed, run),
                    rows if live else dated(rows, run),
                    summary(run),
                    ok=run.status == "finished",
                )
                write_json(place / LOGGED, {"identity": run.manifest.get("identity")})
            except Exception as error:
                say(f"{place.name}: {type(error).__name__}: {error}; the records have everything")


def _status(folder: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(read_manifest(folder)["status"])
    return ""


def _made(feed: Feed, run: Run) -> Sink:
    sink = feed.open(run)
    assert sink is not None
    return sink


def probed(folder: Path, lines: Sequence[Mapping[str, Any]], mode: str) -> None:
    """Log what `zslx probe` measured of the run in `folder` as a run of its own; the same lines give the same run."""
    run = read_run(folder)
    rows = sorted(({"step": line["step"]} | dict(_probe(line)) for line in lines), key=lambda row: row["step"])
    measured = [[line.get("probe"), line["step"]] for line in lines]
    finish(_wandb(run, mode, "probe", str(measured)), rows, {}, ok=True)


def _probe(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((f"probe/{key}", value) for key, value in leaves(line))


def _wandb(run: Run, mode: str, kind: str, measured: str = "") -> WandbRun:
    """Its id follows from the run, its folder's name and the kind of job, so that a run that goes on is found again."""
    key = f"{run.manifest.get('identity')} {run.folder.name} {kind} {measured}"
    identifier = run_id(key)
    names = {"name": run.folder.name, "job_type": kind, "tags": [str(run.config.get("intervention") or "none")]}
    return WandbRun(identifier, run.folder, mode, about(run), **names)
