"""A whole sweep through Ray: what it prints, keeps and logs, and that nothing is trained twice."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from pathlib import Path

import pytest

from zslx.runs.records import read_run
from zslx.tracking.wandb_run import SHOWN

pytestmark = pytest.mark.medium
OPTIONS = ("--seeds", "2", "--steps", "40")


@pytest.fixture
def swept(shared):
    """The shared results folder with the sweep of ema in it, whichever tests ran before in this process."""
    if not list(shared.results.glob("studies/ema-*")):
        assert shared("ema", *OPTIONS).returncode == 0
    return shared


@pytest.fixture
def swept_twice(swept):
    """And with the sweep of cosine, which takes the baselines over."""
    if not list(swept.results.glob("studies/cosine-*")):
        assert swept("cosine", *OPTIONS).returncode == 0
    return swept


def test_first_sweep_trains_everything(shared):
    done = shared("ema", *OPTIONS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "4 trained, 0 finished before" in done.stdout
    assert (shared.folder / lines[-1]).is_file() and lines[-1].endswith(".html"), "the report's path is the last line"
    study = shared.study()
    assert [trial["status"] for trial in study["trials"]] == ["finished"] * 4
    assert [arm["role"] for arm in study["arms"]] == ["baseline", "arm"] and study["exploratory"]
    assert len(list(shared.results.glob("trials/*/manifest.json"))) == 4
    for noise in ("Warning", "WARNING", "Traceback", "wandb:", "pid="):
        assert noise not in done.stdout + done.stderr


def test_second_sweep_trains_nothing_and_starts_no_ray(swept):
    before = swept.records()
    done = swept("ema", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "0 trained, 4 finished before" in done.stdout
    assert "Ray" not in done.stderr
    assert swept.records() == before


def test_on_a_terminal_progress_is_redrawn(sweep):
    """Standard error is a terminal, as when a person runs it."""
    ours, theirs = os.openpty()
    process = sweep.start("none", "--seeds", "1", "--steps", "200", stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
        while part := os.read(ours, 65536):
            seen += part
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, seen.decode(errors="replace")
    assert "1 trained" in out and b"of 1 trials done" in seen and b"baseline/0.1M/0" in seen and b"/200" in seen


def test_another_sweep_takes_the_baselines_over(swept):
    before = swept.records()
    done = swept("cosine", *OPTIONS)
    assert "2 trained, 2 finished before" in done.stdout, done.stderr
    after = swept.records()
    assert before.items() <= after.items(), "what was finished is not touched"


def test_every_trial_is_in_wandb_once(swept_twice):
    """Offline files hold each trial's whole history, and nothing of this machine; studies share their baselines."""
    every = [read_wandb(path) for path in swept_twice.results.glob("wandb/offline-run-*/*.wandb")]
    assert [run["name"] == run["group"] for run in every if run["job_type"] == "study"] == [True, True]
    runs = [run for run in every if run["job_type"] != "study"]
    assert len(runs) == 6, "the second study takes the baselines of the first over"
    identities = {run["config"]["identity"] for run in runs}
    assert len(identities) == 6 and len({run["group"] for run in runs}) == 2
    for run in runs:
        arm, size, seed = run["name"].split("/")
        assert run["job_type"] == arm and run["config"]["size"] == size and run["config"]["seed"] == int(seed)
        folder = next(f for f in swept_twice.results.glob("trials/*") if is_run(f, run["config"]["identity"]))
        kept = read_run(folder)
        own = [row for row in run["history"] if "loss" in row]
        assert [row["step"] for row in own] == kept.steps["step"].tolist()
        assert [row["loss"] for row in own] == kept.steps["loss"].tolist()
        heldout = {row["step"]: row["probe/heldout_loss"] for row in run["history"] if "probe/heldout_loss" in row}
        assert heldout == {line["step"]: line["heldout_loss"] for line in kept.probes}
        assert run["metrics"] == {"step": None, "*": "step", **dict.fromkeys(SHOWN, "step")}
    raw = b"".join(p.read_bytes() for p in swept_twice.results.glob("wandb/**/*") if p.is_file())
    for secret in (socket.gethostname(), str(swept_twice.folder), str(Path.home()), "-----BEGIN", "diff --git"):
        assert secret.encode() not in raw or len(secret) < 4


def test_dry_run_says_what_there_is_and_changes_nothing(swept_twice):
    before = {p: p.stat().st_mtime_ns for p in swept_twice.results.rglob("*")}
    done = swept_twice("ema,cosine", *OPTIONS, "--dry-run", extra="ema.decay=0.5")
    assert done.returncode == 0, done.stderr
    rows = [
        line.split() for line in done.stdout.splitlines() if line.strip().startswith(("baseline/", "ema/", "cosine/"))
    ]
    state = {row[0]: row[4] for row in rows}
    assert state == {
        "baseline/0.1M/0": "finished",
        "baseline/0.1M/1": "finished",
        "cosine/0.1M/0": "finished",
        "cosine/0.1M/1": "finished",
        "ema/0.1M/0": "missing",
        "ema/0.1M/1": "missing",
    }
    assert f"earlier trials in {swept_twice.results.name}" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in swept_twice.results.rglob("*")} == before


@pytest.mark.parametrize("given", ["pcgrd", "pcgrad,emma", "placebo:pcgrd"])
def test_unknown_intervention_is_refused_before_anything_else(sweep, given):
    sweep.environment = sweep.environment | {"ZSLX_CACHE": str(sweep.folder / "no-cache")}
    done = sweep(given)
    assert done.returncode == 2
    assert "did you mean" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not sweep.results.exists() and not (sweep.folder / "no-cache").exists()


def test_listens_on_loopback_only(sweep, processes):
    """Every socket that any process of a local sweep listens on, while trials run."""
    running = sweep.start("none", "--seeds", "1", "--steps", "3000")
    try:
        processes.wait_for(lambda: sweep.steps_done() > 50, running)
        below = processes.below(running.pid)
        assert processes.workers(running.pid)
        listening = [address for pid in (running.pid, *below) for address in listening_addresses(pid)]
        tokens = [Path(f"/proc/{pid}/environ").read_bytes() for pid in below if "gcs_server" in below[pid]]
    finally:
        running.terminate()
        running.communicate(timeout=60)
    assert listening, "Ray listens somewhere"
    assert all(is_loopback(address) for address in listening), listening
    assert tokens and all(b"RAY_AUTH_MODE=token" in one and b"RAY_AUTH_TOKEN=" in one for one in tokens)
    processes.wait_for(lambda: not [pid for pid in below if processes.alive(pid)], seconds=30)


def is_run(folder: Path, identity: str) -> bool:
    return (folder / "manifest.json").exists() and json.loads((folder / "manifest.json").read_text())[
        "identity"
    ] == identity


def listening_addresses(pid: int) -> list[str]:
    """Hexadecimal local addresses of the TCP sockets on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [
        row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def is_loopback(address: str) -> bool:
    """127.0.0.1, the same mapped into IPv6, or ::1, as /proc writes them (32-bit words, little-endian)."""
    return address in ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def read_wandb(path: Path) -> dict:
    """An offline wandb file: protobuf records in LevelDB's log format (blocks of 32 KiB, 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2

    data, place, part = path.read_bytes(), 7, b""
    run: dict = {"history": [], "config": {}, "metrics": {}}
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record, part = wandb_internal_pb2.Record.FromString(part), b""
            keep(run, record)
    return run


def keep(run: dict, record) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run" and record.run.display_name:
        run |= {"name": record.run.display_name, "group": record.run.run_group, "job_type": record.run.job_type}
        run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "history":
        items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
        run["history"].append(items)
    elif kind == "metric":
        run["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric or None


@pytest.mark.slow
def test_a_grid_is_one_study_whose_arms_name_their_settings(sweep):
    done = sweep("focal,placebo:focal", "--seeds", "2", "--steps", "40", extra="focal.gamma=1,2")
    assert done.returncode == 0, done.stderr
    assert "10 trained" in done.stdout
    study = sweep.study()
    arms = {arm["name"]: (arm["role"], arm["of"], arm["settings"]) for arm in study["arms"]}
    for gamma in ("1", "2"):
        settings, of = {"focal": {"gamma": gamma}}, f"focal gamma={gamma}"
        assert arms[of] == ("arm", None, settings) and arms[f"placebo:{of}"] == ("placebo", of, settings)
        assert f"→ exploratory: {of}: " in done.stdout
    folders = sweep.results.glob("trials/[0-9a-f]*")
    gammas = {read_run(folder).config["settings"].get("focal", {}).get("gamma") for folder in folders}
    assert gammas == {None, "1", "2"}
