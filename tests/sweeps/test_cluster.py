"""Sweeps on a cluster of two nodes, which are processes of this machine: one dies, one is unlike the other."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeps import cluster
from sweeps.ledger import Ledger
from sweeps.ranks import room, told
from sweeps.ray_session import ray
from sweeps.trial import trial
from zslx.config.run_config import Config
from zslx.places import ROOT

STEPS = 1500
# Two raylets, each with one core. A line on stdin kills the second as a machine dies: all of its processes at once.
NODES = """
import json, sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 1, "include_dashboard": False}
nodes = Cluster(initialize_head=True, head_node_args=head)
other = nodes.add_node(num_cpus=1, env_vars=json.loads(sys.argv[1]))
print(nodes.address, flush=True)
for line in sys.stdin:
    nodes.remove_node(other, allow_graceful=False)
    print("gone", flush=True)
nodes.shutdown()
"""


@pytest.fixture
def two_nodes(sweep, processes) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts the cluster for `sweep`, the second node with more environment variables."""
    folder = Path(tempfile.mkdtemp(prefix="zslx-", dir="/tmp"))  # short, since sockets lie in it
    (folder / "ray").mkdir()
    own = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    sweep.environment = sweep.environment | own | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    started: list[subprocess.Popen[str]] = []

    def start(**second: str) -> subprocess.Popen[str]:
        nodes = subprocess.Popen(
            [sys.executable, "-c", NODES, json.dumps(second)],
            env=sweep.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(nodes)
        assert nodes.stdout
        sweep.environment["RAY_ADDRESS"] = nodes.stdout.readline().strip()
        assert sweep.environment["RAY_ADDRESS"].rpartition(":")[2].isdigit()
        return nodes

    yield start
    for nodes in started:
        below = processes.below(nodes.pid)
        nodes.communicate(timeout=60)
        processes.wait_for(lambda below=below: not [pid for pid in below if processes.alive(pid)], seconds=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_node_that_dies_costs_no_trial(sweep, processes, two_nodes, tmp_path):
    """Its trial goes on elsewhere; every trial is trained once, and its records are those of the trial by itself."""
    nodes = two_nodes()
    options = ("--seeds", "2", "--steps", str(STEPS), "--wandb", "off")
    running = sweep.start("ema", *options, extra="run.resume_seconds=0.3")
    processes.wait_for(lambda: len(processes.workers(nodes.pid)) == 2 and two_under_way(sweep), running)
    nodes.stdin.write("kill\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == "gone\n"
    unfinished = [p for p in sweep.results.glob("trials/*/manifest.json") if '"running"' in p.read_text()]
    assert unfinished, "the node was killed after the end: the test shows nothing"
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, out + err
    assert "as many at a time as the cluster has cores for" in out
    assert "4 trained, 0 finished before" in out and "failed" not in out
    folders = [Ledger(sweep.results).folder(t["identity"]) for t in sweep.study()["trials"]]
    assert len(folders) == 4 == len(list(sweep.results.glob("trials/*/manifest.json")))
    assert not list(sweep.results.glob("trials/.damaged/*")) and not list(sweep.results.glob(".tune/sweep-*"))
    records = sweep.records()
    for folder in folders:
        trial(Config.from_dict(json.loads((folder / "config.json").read_text())).to_dict(), tmp_path / folder.name)
        for name in ("config.json", "steps.jsonl", "probes.jsonl"):
            assert records[f"{folder.name}/{name}"] == (tmp_path / folder.name / name).read_bytes()


def two_under_way(sweep) -> bool:
    return sweep.checkpoints() and len(list(sweep.results.glob("trials/*/checkpoints"))) >= 2


@pytest.mark.slow
def test_a_trial_takes_ranks_on_both_nodes_and_outlives_one_of_them(sweep, processes, two_nodes, tmp_path):
    """A rank is killed in the middle: the trial goes on from its checkpoint, and is that of one process to rounding."""
    nodes = two_nodes()
    options = ("--seeds", "1", "--steps", "800", "--wandb", "off")
    running = sweep.start("none", *options, extra="run.workers=2 run.resume_seconds=0.3 train.dtype=float64")
    processes.wait_for(sweep.checkpoints, running)
    ranks = [one for one, command in processes.below(nodes.pid).items() if command.startswith("ray::RayTrainWorker")]
    assert len(ranks) == 2 and len({parent(rank) for rank in ranks}) == 2, "one rank on each node"
    os.kill(ranks[1], signal.SIGKILL)
    out, err = running.communicate(timeout=400)
    assert running.returncode == 0, out + err
    assert "1 trained, 0 finished before" in out and "failed" not in out
    [known] = sweep.study()["trials"]
    folder = Ledger(sweep.results).folder(known["identity"])
    assert {json.loads(line)["ranks"] for line in (folder / "timing.jsonl").read_text().splitlines()} == {2}
    assert len((folder / "timing.jsonl").read_text().splitlines()) >= 2, (
        "it was not interrupted: the test shows nothing"
    )
    config = json.loads((folder / "config.json").read_text())
    trial(config | {"run": config["run"] | {"workers": 1}}, tmp_path / "alone")
    ours, alone = (
        [json.loads(line)["loss"] for line in (place / "steps.jsonl").read_text().splitlines()]
        for place in (folder, tmp_path / "alone")
    )
    assert ours == pytest.approx(alone, rel=1e-7)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_node_with_other_sources_stops_the_sweep(sweep, two_nodes, tmp_path):
    """The second node has a copy of zslx of which one file is not the same; what is finished is kept."""
    copy = tmp_path / "copy"
    for package in ("zslx", "sweeps", "analysis", "interventions"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    loop = copy / "zslx" / "training" / "loop.py"
    loop.write_text(loop.read_text() + "\n# another version\n")
    two_nodes(PYTHONPATH=str(copy))
    done = sweep("none", "--seeds", "4", "--steps", "40", "--wandb", "off")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has another source of zslx/training/loop.py in its zslx" in done.stderr and "Traceback" not in done.stderr
    assert str(copy) in done.stderr and len(done.stderr.strip().splitlines()[-1]) < 400


def test_what_ranks_raise_is_told_by_the_one_that_knows():
    refused, other = ValueError("three sequences, four ranks"), RuntimeError("of its own")
    unlike = cluster.Unlike("node b has another source")
    echo, broken = RuntimeError("[gloo] Connection closed by peer"), ConnectionError("another rank is gone")
    assert told({0: refused, 1: echo}, 2) is refused
    assert told({0: broken, 1: unlike}, 2) is unlike and told({0: refused, 2: unlike}, 3) is unlike
    assert told({0: broken, 1: other}, 2) is other
    lost = told({0: broken, 1: ray.exceptions.RayActorError()}, 2)
    assert isinstance(lost, ConnectionError) and str(lost).startswith("rank 1 of 2 is gone (The actor")
    assert isinstance(told({0: broken, 1: echo}, 2), ConnectionError) and isinstance(told({}, 2), ConnectionError)


def test_trials_of_ranks_start_where_all_of_their_ranks_find_places():
    three = {"CPU": 3.0, "GPU": 4.0}
    assert room([three, three], 2, 1, gpu=False) == 3 and room([three, three], 2, 1, gpu=True) == 3
    assert room([three, three], 2, 2, gpu=False) == 1  # one rank of two threads on each node
    with pytest.raises(ValueError, match=r"run\.workers=3: the cluster has places for 2 ranks of 2 cores: add nodes"):
        room([three, three], 3, 2, gpu=False)
    with pytest.raises(ValueError, match="places for 0 ranks of 1 core and a GPU"):
        room([{"CPU": 8.0}], 2, 1, gpu=True)


def test_a_node_is_held_to_what_the_sweep_has(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSLX_PLUGINS", "here")
    asked = cluster.common(tmp_path / "results", tmp_path)
    monkeypatch.setenv("ZSLX_PLUGINS", "")
    cluster.check(asked)
    assert cluster.plugin_folders() == [(Path.cwd() / "here")]
    for change, words in (
        ({"version": "9.9"}, "has zslx .*, the sweep 9.9"),
        ({"sources": {**asked.sources, "zslx/__init__.py": "0"}}, "has another source of zslx/__init__.py in"),
        ({"sources": {}}, "has another source of analysis/__init__.py and [0-9]+ more files in"),
        ({"mark": str(tmp_path / "gone")}, "does not see RESULTS=.*storage that every node sees"),
    ):
        with pytest.raises(cluster.Unlike, match=f"^node [^ ]+ {words}"):
            cluster.check(cluster.Common(**{**vars(asked), **change}))


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, None), ("", None), ("local", None), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379")],
)
def test_the_address_of_a_cluster(monkeypatch, given, found):
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster.address() == found


def test_addresses_and_results_that_cannot_serve_are_refused(sweep, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=ray://10\.0\.0\.1:10001: the sweep must run on a node of the"):
        cluster.address()
    done = sweep("none", "--results", "s3://bucket/results")
    assert done.returncode == 2
    assert "RESULTS=s3://bucket/results: allowed is a folder" in done.stderr and not (sweep.folder / "s3:").exists()
