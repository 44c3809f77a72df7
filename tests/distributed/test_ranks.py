"""A run on 2 or 4 processes is the run of one: records, weights, resumes. Float64, uneven on purpose."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from zslx.distributed.launch import launch
from zslx.runs.json_files import read_json
from zslx.testing.subject import TINY, Outcome, plain
from zslx.training.train import train

TOLERANCE = 1e-9
# Five sequences on two or four ranks; seven held out. Every kind of instrument.
BASE: dict[str, Any] = {
    "train.dtype": "float64",
    "data.batch_size": 5,
    "data.heldout_sequences": 7,
    "train.steps": 4,
    "instruments.probes": True,
    "instruments.heldout_points": 50,
    "instruments.gradient_sequences": 5,
    "instruments.gradient_positions": True,
    "instruments.token_samples": 4,
    "run.resume_seconds": 0,
}
PCGRAD = {"intervention": "pcgrad"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "focal": {"intervention": "focal"},
    "parts": {"intervention": "focal", "train.micro_batch": 1},
    "pcgrad": PCGRAD,
    "domains": PCGRAD | {"pcgrad.groups": "domain"},  # groups that span ranks
    "quantiles": PCGRAD | {"pcgrad.groups": "loss_quantile"},
    "proxy": PCGRAD | {"pcgrad.groups": "loss_quantile", "pcgrad.proxy": True},
    "agreement": {"intervention": "agreement"},
    "agreement domains": {"intervention": "agreement", "agreement.groups": "domain"},
    "doge": {"intervention": "doge"},  # gradients on a control set
    "token_alignment": {"intervention": "token_alignment"},
    "several": {"intervention": "infobatch+mile+ema"},  # another B, entropy, averaged weights
}
# With spread parameters: as many sequences on each rank, and no gradients but the step's.
EVEN = {"data.batch_size": 4, "data.heldout_sequences": 8, "model.n_layers": 2}
EVEN |= {f"instruments.{key}": 0 for key in ("gradient_sequences", "token_samples")}
FOCAL_IN_CHUNKS = {"intervention": "focal", "train.loss_chunk": 3}
REFUSED: dict[str, dict[str, Any]] = {
    "pcgrad": PCGRAD,
    "ema": {"intervention": "ema"},
    "uneven": {"data.batch_size": 5},
    "instruments": {"instruments.gradient_sequences": 4},
}
DIVERGES = {"optim.lr": 100.0, "optim.clip": 0.0, "optim.warmup": 0, "optim.weight_decay": 100.0, "train.steps": 60}
IN_CI = {"plain": (2, 4), "focal": (2,), "pcgrad": (2, 4), "domains": (4,), "agreement": (2,)}  # on how many ranks


@pytest.fixture(scope="module")
def jobs() -> ModuleType:
    """jobs.py, importable by the ranks as well."""
    folder = str(Path(__file__).parent)
    spec = importlib.util.spec_from_file_location("jobs", Path(folder) / "jobs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jobs", module)
        patch.syspath_prepend(folder)  # spawned processes get the path
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def base(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def outcomes(jobs: ModuleType, base: Path) -> Mapping[str, Any]:
    """Four processes that train what the tests of CI look at; what became of each."""
    train(plain(BASE), base / "alone")  # the text is there when the ranks begin
    wanted = [
        jobs.Job(f"{name} {world}", world, BASE | CASES[name]) for name, worlds in IN_CI.items() for world in worlds
    ]
    stopped = partial(jobs.Job, values=BASE | PCGRAD, folder="resumed")
    sharded = BASE | EVEN | {"run.shard": True}
    wanted += [
        jobs.Job("sharded 2", 2, sharded),
        jobs.Job("sharded focal 4", 4, sharded | FOCAL_IN_CHUNKS),
        jobs.Job("sharded first", 2, sharded, "reshaped", stop_at=3),
        jobs.Job("sharded then", 4, sharded, "reshaped", stop_at=4),
        jobs.Job("not sharded then", 2, BASE | EVEN, "reshaped"),
        *(jobs.Job(f"sharded {name}", 2, sharded | values) for name, values in REFUSED.items()),
        stopped("stopped", 2, stop_at=3),
        stopped("resumed", 2),
        jobs.Job("first part", 4, BASE | PCGRAD, "changed", stop_at=3, processor="another"),
        jobs.Job("second part", 2, BASE | PCGRAD, "changed"),
        jobs.Job("poly", 2, BASE | {"intervention": "poly"}),
        jobs.Job("few", 4, BASE | {"data.batch_size": 3}),
        jobs.Job("diverged", 2, BASE | DIVERGES),
    ]
    return launch(4, jobs.work, wanted, str(base))


def assert_close(one: Any, several: Any, path: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == several.keys(), path
        for key in one:
            assert_close(one[key], several[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(several), path
        for i, pair in enumerate(zip(one, several, strict=True)):
            assert_close(*pair, f"{path}/{i}")
    elif isinstance(one, float) and isinstance(several, float):
        assert abs(one - several) <= TOLERANCE * max(1.0, abs(one)), (path, one, several)
    else:
        assert one == several, path


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(one: Path, several: Path) -> None:
    """Records and weights, to rounding."""
    for name in ("steps", "probes"):
        assert_close(lines_of(one / f"{name}.jsonl"), lines_of(several / f"{name}.jsonl"), name)
    assert Outcome.read(one).distance(Outcome.read(several)) < TOLERANCE
    assert len({read_json(folder / "manifest.json")["identity"] for folder in (one, several)}) == 1


@pytest.mark.medium
@pytest.mark.parametrize("name", IN_CI)
def test_ranks_train_the_run_of_one_process(name: str, outcomes: Mapping[str, Any], base: Path, tmp_path: Path):
    train(plain(BASE | CASES[name]), tmp_path)
    for world in IN_CI[name]:
        assert outcomes[f"{name} {world}"]["status"] == "finished"
        assert_same_run(tmp_path, base / f"{name} {world}")


@pytest.mark.slow
def test_every_way_to_make_a_gradient(jobs: ModuleType, base: Path, tmp_path: Path):
    wanted = [jobs.Job(f"{name} {world}", world, BASE | CASES[name]) for name in CASES for world in (2, 3, 4)]
    found = launch(4, jobs.work, wanted, str(tmp_path))
    for name in CASES:
        train(plain(BASE | CASES[name]), tmp_path / name)
        for world in (2, 3, 4):
            assert found[f"{name} {world}"]["status"] == "finished", found[f"{name} {world}"]
            assert_same_run(tmp_path / name, tmp_path / f"{name} {world}")


@pytest.mark.medium
def test_a_resume_is_bitwise_on_as_many_ranks(outcomes: Mapping[str, Any], base: Path):
    assert outcomes["stopped"].startswith("Stopped") and outcomes["resumed"]["status"] == "finished"
    assert Outcome.read(base / "pcgrad 2").difference(Outcome.read(base / "resumed")) is None


@pytest.mark.medium
def test_a_resume_may_have_another_number_of_ranks(outcomes: Mapping[str, Any], base: Path, tmp_path: Path):
    assert outcomes["first part"].startswith("Stopped") and outcomes["second part"]["status"] == "finished"
    assert_same_run(base / "pcgrad 4", base / "changed")
    lines = lines_of(base / "changed/timing.jsonl")
    assert [line["ranks"] for line in lines] == [4 if line["step"] < 3 else 2 for line in lines]
    assert all(sum(line["sent"].values()) > 0 for line in lines)
    [earlier] = read_json(base / "changed/manifest.json")["earlier"]
    assert earlier["hardware"]["processor"] == "another"
    assert "earlier" not in read_json(base / "resumed/manifest.json")


@pytest.mark.medium
def test_ranks_that_use_other_parameters_add_up_the_right_ones(jobs: ModuleType):
    """Experts that no row of a rank goes to, or that it uses in another order or in an earlier part alone."""
    steps = [[[0, 1, 2], [3, 0, 1]], [[2, 2, 2], [1, 3, 3]], [[0, 0], [0, 0]]]
    for step, found in zip(steps, launch(2, jobs.routed, steps), strict=True):
        alone = jobs.Routed()
        alone.loss([row for rows in step for row in rows]).backward()
        for one, several in zip(jobs.gradients(alone), found, strict=True):
            assert (one is None) == (several is None)
            assert one is None or torch.allclose(one, several, rtol=1e-12, atol=1e-12)


@pytest.mark.medium
def test_spread_parameters(outcomes: Mapping[str, Any], base: Path, tmp_path: Path):
    for name, values in {"sharded 2": {}, "sharded focal 4": FOCAL_IN_CHUNKS}.items():
        assert outcomes[name]["status"] == "finished"
        train(plain(BASE | EVEN | values), tmp_path / name)
        assert_same_run(tmp_path / name, base / name)


@pytest.mark.medium
def test_a_run_goes_on_with_other_ranks_and_without_spreading(outcomes: Mapping[str, Any], base: Path):
    assert all(outcomes[f"sharded {name}"].startswith("Stopped") for name in ("first", "then"))
    assert outcomes["not sharded then"]["status"] == "finished"
    assert_same_run(base / "sharded 2", base / "reshaped")


@pytest.mark.medium
def test_spreading_refuses_by_name_what_takes_the_whole_model(outcomes: Mapping[str, Any]):
    assert outcomes["sharded pcgrad"].startswith("ValueError: run.shard=true: pcgrad has the hook group_weights")
    assert outcomes["sharded ema"].startswith("ValueError: run.shard=true: ema has the hook average")
    assert outcomes["sharded uneven"].startswith("ValueError: data.batch_size=5: run.shard=true needs a multiple of")
    assert "instruments.gradient_sequences=0" in outcomes["sharded instruments"]


@pytest.mark.medium
def test_what_cannot_be_shared_is_refused_by_name(outcomes: Mapping[str, Any], base: Path):
    assert outcomes["poly"].startswith("ValueError: poly: its extra loss")
    assert outcomes["few"] == "ValueError: data.batch_size=3: fewer sequences than the 4 ranks"
    assert not (base / "poly/config.json").exists() and not (base / "few/config.json").exists()


@pytest.mark.medium
def test_a_run_that_diverges_ends_on_all_ranks(outcomes: Mapping[str, Any], base: Path):
    last = lines_of(base / "diverged/steps.jsonl")[-1]
    assert outcomes["diverged"]["status"] == "diverged" and last["loss"] is None, last


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_rank_on_a_gpu(jobs: ModuleType, base: Path, tmp_path: Path):
    """One rank, since NCCL takes one a GPU: every collective runs, on tensors of the kind that it is given."""
    on_gpu = {"train.device": "cuda", "train.dtype": "float32"}
    wanted = [jobs.Job(name, 1, BASE | CASES[name] | on_gpu) for name in CASES]
    wanted.append(jobs.Job("sharded", 1, BASE | EVEN | on_gpu | {"run.shard": True}))
    found = launch(1, jobs.work, wanted, str(tmp_path))
    for job in wanted:
        assert found[job.name]["status"] == "finished", found[job.name]
        train(plain({**job.values, "run.shard": False}), tmp_path / f"one {job.name}")
        assert Outcome.read(tmp_path / job.name).distance(Outcome.read(tmp_path / f"one {job.name}")) < 1e-4


LONG = TINY | BASE | {"train.steps": 800, "run.resume_seconds": 0.1, "instruments.probes": False}


def command(*more: str) -> list[str]:
    """What follows `python` or torchrun to train the long run."""
    values = LONG | {"data.path": plain({}).data.path}
    return ["-m", "zslx", "train", "smoke", *(f"{key}={value}" for key, value in values.items()), *more, "--out"]


def below(parent: int, word: bytes) -> list[int]:
    """The processes under another one in whose command line or environment the word occurs, oldest first."""
    listed = subprocess.run(["ps", "-e", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    under = {parent}
    for ppid, pid in sorted(pairs, key=lambda pair: pair[1]):
        if ppid in under:
            under.add(pid)
    return [pid for pid in sorted(under - {parent}) if word in described(pid)]


def described(pid: int) -> bytes:
    try:
        return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return b""


def kill_one_rank(process: subprocess.Popen[str], out: Path, word: bytes) -> list[int]:
    """Kill the last rank once a state was saved; the ranks' ids."""
    deadline = time.monotonic() + 120
    while not list((out / "resume").glob("0*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    ranks = below(process.pid, word)
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    return ranks


@pytest.mark.slow
def test_torchrun_goes_on_after_a_rank_was_killed(cache: Path, tmp_path: Path):
    """Its agent starts all ranks again, which resume; the records are those of a run that was never stopped."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    agent += command()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*agent, whole], check=True, timeout=300)
    process = subprocess.Popen([*agent, killed], text=True)
    kill_one_rank(process, killed, b"LOCAL_RANK=")
    assert process.wait(timeout=300) == 0
    assert Outcome.read(whole).difference(Outcome.read(killed)) is None


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_the_same_command_goes_on(cache: Path, tmp_path: Path):
    ours = [sys.executable, *command("run.workers=2"), str(tmp_path)]
    process = subprocess.Popen(ours, stderr=subprocess.PIPE, text=True)
    ranks = kill_one_rank(process, tmp_path, b"spawn_main")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "was killed (SIGKILL); the same command goes on" in errors, errors
    assert not any(map(described, ranks))
    again = subprocess.run(ours, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and read_json(tmp_path / "manifest.json")["status"] == "finished", again.stderr
