"""Runs in wandb and TensorBoard while they train: every row once, whatever is killed; the real libraries, offline."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from sweeps import wandb_log
from sweeps.ledger import Ledger
from sweeps.planned import PlannedTrial
from sweeps.study import build
from sweeps.trial import Job, run
from sweeps.wandb_log import Labels
from zslx.config.run_config import Config
from zslx.runs.json_files import write_json
from zslx.runs.records import RunRecords, read_run
from zslx.tracking import stream
from zslx.tracking.event_files import EventFiles
from zslx.tracking.rows import TIME, Rows, dated
from zslx.tracking.stream import Feed, finish
from zslx.tracking.wandb_run import SHOWN, WandbRun

pytestmark = pytest.mark.medium


def begin(folder: Path, status: str = "running") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", Config().to_dict())
    write_json(folder / "manifest.json", {"status": status, "identity": "0123456789abcdef"})
    return folder


def train(records: RunRecords, *steps: int) -> None:
    """Steps as the trainer writes them; a probe at even ones."""
    for step in steps:
        records.append_step({"step": step, "tokens": 64 * step, "loss": 8.0 / step})
        if step % 2 == 0:
            records.append_probe({"step": step, "tokens": 64 * step, "heldout_loss": 9.0 / step})
            records.append_timing({"step": step, "steps": 2, "seconds": 1.5, "instrument_seconds": 0.5})
        records.flush(sync=False)


def rows_of(wandb_sweep, folder: Path) -> list[dict]:
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    return wandb_sweep.read_wandb(path)["history"]


@pytest.fixture(scope="module")
def reader():
    """The reader of offline files that the test of a whole sweep has."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("sweep_reader", Path(__file__).with_name("test_sweep.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_wandbs_own(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def test_a_run_that_is_watched_killed_and_goes_on_has_every_row_once(tmp_path, reader):
    folder = begin(tmp_path / "trials" / "a")
    opened = []

    def open_run(found):
        opened.append(WandbRun("someid", tmp_path, "offline", {"a": 1}, name="n"))
        return opened[0]

    feed = Feed(folder, open_run)
    records = RunRecords(folder)
    train(records, 1, 2, 3)
    feed.look()
    assert opened[0].first == 3, "step 3 may get a probe yet"
    train(records, 4, 5)
    feed.look()
    records.cut_to(2)  # killed; it goes on from a checkpoint at step 2
    train(records, 3, 4)
    feed.look()
    train(records, 5, 6)
    records.close()
    feed.look()
    begin(folder, "finished")
    whole = Rows(folder).new(whole=True)
    finish(opened[0], whole, {"total": 1.0}, ok=True)
    wandb_log.close()
    rows = rows_of(reader, tmp_path)
    assert without_wandbs_own(rows) == whole and [row["_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert whole[1] == {"step": 2, "tokens": 128.0, "loss": 4.0, "probe/heldout_loss": 4.5, "seconds": 2.0}
    assert not feed.wrong and rows[-1]["_runtime"] > rows[0]["_runtime"] > 0


def test_a_run_that_wandb_has_already_gets_what_it_lacks(tmp_path, reader):
    folder = begin(tmp_path / "trials" / "a", "finished")
    with RunRecords(folder) as records:
        train(records, *range(1, 9))
    logged = WandbRun("someid", tmp_path, "offline", {}, name="n")
    logged.first = 5  # as wandb says of a run that goes on
    finish(logged, Rows(folder).new(whole=True), {}, ok=True)
    wandb_log.close()
    assert [row["step"] for row in rows_of(reader, tmp_path)] == [5, 6, 7, 8]


def test_rows_from_the_records_have_their_times(tmp_path):
    folder = begin(tmp_path / "a", "finished")
    with RunRecords(folder) as records:
        train(records, *range(1, 9))
    found = read_run(folder)
    times = [row[TIME] for row in dated(Rows(folder).new(whole=True), found)]
    ended = (folder / "manifest.json").stat().st_mtime
    assert times[-1] == pytest.approx(ended) and times[0] == pytest.approx(ended - 7.0)
    assert times == sorted(times)


def test_the_workspace_shows_what_matters_and_hides_the_rest(tmp_path):
    from wandb.proto import wandb_internal_pb2

    folder = tmp_path / "a"
    logged = WandbRun("someid", folder, "offline", {}, name="n")
    logged.write([{"step": 1, "loss": 1.0, "probe/grad_token/by_layer/0/ratio": 2.0}])
    logged.close(ok=True)
    wandb_log.close()
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    metrics = {}
    for record in records_of(path, wandb_internal_pb2):
        if record.WhichOneof("record_type") == "metric":
            metrics[record.metric.name or record.metric.glob_name] = record.metric
    assert len(SHOWN) == 20 and {name for name, m in metrics.items() if not m.options.hidden} == set(SHOWN)
    assert metrics["*"].options.hidden and all(m.step_metric == "step" for n, m in metrics.items() if n != "step")


def records_of(path: Path, proto):
    """The records of an offline file: protobuf in LevelDB's log format (blocks of 32 KiB, 7-byte headers)."""
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, part = proto.Record.FromString(part), b""
            yield record


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of the event files in a folder: TFRecords of protobuf events."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        assert socket.gethostname() not in path.name
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack("<Q", data[place : place + 8])
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_event_files_have_every_row_once_also_when_a_run_goes_on(tmp_path):
    folder = begin(tmp_path / "a")
    with RunRecords(folder) as records:
        train(records, 1, 2, 3)
        EventFiles(tmp_path / "events").write(Rows(folder).new())  # and killed
        again = EventFiles(tmp_path / "events")
        again.write(Rows(folder).new())
        train(records, 4)
    rows = Rows(folder).new(whole=True)
    finish(again, rows, {}, ok=True)
    wanted = [(row["step"], key, pytest.approx(value)) for row in rows for key, value in row.items() if key != "step"]
    assert sorted(events(tmp_path / "events")) == sorted(wanted)


def job_of(trial: PlannedTrial, folder: Path, labels: Labels, **how) -> Job:
    """A trial as a worker gets it, by itself."""
    return Job(
        config=trial.config.to_dict(),
        folder=str(folder),
        identity=trial.identity,
        packed=False,
        working_directory=labels.results,
        labels=dataclasses.asdict(labels),
        **how,
    )


def test_trials_are_streamed_and_have_their_difference_to_the_baseline(tiny, tmp_path, monkeypatch, reader):
    """What a worker does, with wandb online as far as it goes without an account: its run is made offline."""
    monkeypatch.setattr(stream, "SECONDS", 0.05)
    online = wandb_log._open
    monkeypatch.setattr(wandb_log, "_open", lambda run, labels, mode: online(run, labels, "offline"))
    streamed, take = [], wandb_log.Streamed.taken
    monkeypatch.setattr(wandb_log.Streamed, "taken", lambda self: streamed.append(self.feed.sink) or take(self))
    overrides = [*tiny.split(), "train.steps=60"]
    study = build(("focal",), "smoke", sizes=["0.1M"], seeds=(0,), overrides=overrides, results=tmp_path)
    ledger, (base, focal) = Ledger(tmp_path), study.trials
    labels = {t.arm: Labels(results=str(tmp_path), study="s", arm=t.arm, size=t.size, seed=0) for t in (base, focal)}
    labels["focal"] = dataclasses.replace(labels["focal"], baseline=base.key)

    def trained(trial, wandb: str) -> list[dict]:
        job = job_of(trial, ledger.folder(trial.key), labels[trial.arm], wandb=wandb, tensorboard=True)
        return run([job])

    assert trained(focal, "offline") == [{"status": "finished", "trained": True, "wandb": None}]
    assert not list(tmp_path.glob("wandb/offline-run-*")), "it waits for its baseline"
    assert trained(base, "online") == [{"status": "finished", "trained": True, "wandb": None}]
    assert rows_of(reader, tmp_path) and {type(s) for s in streamed if s} == {WandbRun, EventFiles}
    assert wandb_log.log(ledger.folder(focal.key), labels["focal"], "offline") is None
    wandb_log.close()
    found = {p: reader.read_wandb(p) for p in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert sorted(r["name"] for r in found.values()) == ["baseline/0.1M/0", "focal/0.1M/0"]
    for path, logged in found.items():
        trial = base if logged["name"].startswith("baseline") else focal
        assert without_wandbs_own(logged["history"]) == Rows(ledger.folder(trial.key)).new(whole=True)
        assert logged["config"]["parameters"]["total"] > 0 and logged["config"]["hardware"]["threads"] == 1
        assert ("paired_difference" in summary_of(path)) == (trial is focal)
        assert {"tail_slope", "deceleration", "totals/seconds", "status"} <= set(summary_of(path))
        [files] = tmp_path.glob(f"tensorboard/*/0.1M/0-{trial.key[:8]}")
        assert len({step for step, _, _ in events(files)}) == 61
    last = [read_run(ledger.folder(t.key)).probes[-1]["heldout_loss"] for t in (base, focal)]
    [difference] = [s["paired_difference"] for p in found if "paired_difference" in (s := summary_of(p))]
    assert difference == pytest.approx(math.log(last[1] / last[0]), abs=0.02)


def test_a_trial_that_pauses_is_logged_when_it_is_over(tiny, tmp_path, reader):
    overrides = [*tiny.split(), "train.steps=40"]
    [trial] = build(("none",), "smoke", sizes=["0.1M"], seeds=(0,), overrides=overrides, results=tmp_path).trials
    folder = Ledger(tmp_path).folder(trial.key)
    labels = Labels(results=str(tmp_path), study="s", arm="baseline", size="0.1M", seed=0)

    def trained(planned) -> dict:
        return run([job_of(planned, folder, labels, wandb="offline", tensorboard=True)])[0]

    assert trained(trial.up_to(10)) == {"status": "paused", "trained": True, "wandb": None}
    assert trained(trial.up_to(10)) == {"status": "paused", "trained": False, "wandb": None}
    assert not list(tmp_path.glob("wandb/offline-run-*"))
    assert wandb_log.pause(folder, [EventFiles(tmp_path / "paused"), None]) is None
    assert {step for step, _, _ in events(tmp_path / "paused")} == set(range(11))
    assert trained(trial) == {"status": "finished", "trained": True, "wandb": None}
    wandb_log.close()
    assert without_wandbs_own(rows_of(reader, tmp_path)) == Rows(folder).new(whole=True)
    [files] = tmp_path.glob(f"tensorboard/*/0.1M/0-{trial.key[:8]}")
    assert {step for step, _, _ in events(files)} == set(range(41))


def summary_of(path: Path) -> dict:
    from wandb.proto import wandb_internal_pb2

    found: dict = {}
    for record in records_of(path, wandb_internal_pb2):
        if record.WhichOneof("record_type") == "summary":
            found |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    return found


def test_a_run_is_there_once_whatever_else_wrote_it(tmp_path):
    """A process that was killed before it, and a start that was given up and came to life while it ran."""
    killed, late = (tmp_path / f"wandb/offline-run-20260101_00000{n}-abc" for n in (1, 2))
    other = tmp_path / "wandb/offline-run-20260101_000001-abcd"
    for folder in (killed, other):
        folder.mkdir(parents=True)
    run = WandbRun("abc", tmp_path, "offline", {})
    late.mkdir()
    finish(run, [{"step": 0, "loss": 1.0}], {}, ok=True)
    wandb_log.close()
    own = Path(run.run.dir).parent
    assert sorted((tmp_path / "wandb").glob("*run-*")) == sorted([own, other]) and list(own.glob("*.wandb"))


def test_a_wandb_out_of_reach_is_asked_once_and_costs_no_trial(tiny, tmp_path, monkeypatch):
    """No key: what wandb itself says is told, the trial is trained, and the end of the sweep may try again."""
    for name, value in (("HOME", tmp_path), ("NETRC", tmp_path / "none"), ("WANDB_BASE_URL", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, str(value))  # whoever runs this may be logged in
    asked, make = [], wandb_log._open
    monkeypatch.setattr(wandb_log, "_open", lambda *a, **k: (asked.append(1), make(*a, **k))[1])
    monkeypatch.setattr(stream, "SECONDS", 0.05)
    study = build(("none",), "smoke", sizes=["0.1M"], seeds=(0,), overrides=[*tiny.split(), "train.steps=20"])
    [trial] = study.trials
    folder = Ledger(tmp_path).folder(trial.key)
    labels = Labels(results=str(tmp_path), study="s", arm="baseline", size="0.1M", seed=0)
    [found] = run([job_of(trial, folder, labels, wandb="online")])
    assert found["status"] == "finished" and "No API key" in found["wandb"] and len(asked) == 1
    assert wandb_log.log(folder, labels, "offline") is None, "its lock was given back, and it is not marked as logged"
    wandb_log.close()
    assert len(list(tmp_path.glob("wandb/*run-*"))) == 1


@pytest.mark.slow
def test_train_and_probe_log_to_wandb_too(sweep, reader):
    options = {"cwd": sweep.folder, "env": sweep.environment, "capture_output": True, "text": True, "timeout": 300}
    train = [*sweep.zslx, "train", "smoke", *sweep.tiny.split(), "train.steps=8", "--out", "one", "--wandb", "offline"]
    for _ in range(2):  # again: nothing more
        done = subprocess.run([*train, "--tensorboard"], **options)
        assert done.returncode == 0, done.stderr
        assert "wandb" not in done.stderr
    rows = rows_of(reader, sweep.folder / "one")
    assert without_wandbs_own(rows) == Rows(sweep.folder / "one").new(whole=True)
    assert events(sweep.folder / "one" / "tensorboard")
    probe = [*sweep.zslx, "probe", "one", "--n", "8", "--steps", "8", "--no-figures", "--wandb", "offline"]
    done = subprocess.run(probe, **options)
    assert done.returncode == 0, done.stderr
    logged = [reader.read_wandb(p) for p in (sweep.folder / "one").glob("wandb/offline-run-*/*.wandb")]
    assert {run["job_type"] for run in logged} == {"train", "probe"}
    [probed] = [run["history"] for run in logged if run["job_type"] == "probe"]
    assert probed[0]["step"] == 8 and probed[0]["probe/heldout_loss"] > 0
