"""Divergence, a full disk, a folder that cannot be written: clear ends, nothing taken for finished."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from zslx.commands.cli import main
from zslx.runs import checkpoints
from zslx.runs.json_files import read_json, read_lines
from zslx.runs.records import read_run
from zslx.testing.subject import BLIND, Outcome, plain, text, trained
from zslx.training.loop import TrainingRun
from zslx.training.train import train

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", ["none", "focal", "pcgrad", "agreement", "poly", "ema"])
def test_a_loss_that_is_not_finite_stops_before_the_update(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Recorded as diverged, whatever the method; the last good weights are those on disk; it is not trained again."""
    true = TrainingRun.advance

    def poisoned(self: TrainingRun, step: int, clock):
        if step == 4:
            with torch.no_grad():
                self.model.blocks[0].mlp.up.weight[0, 0] = torch.nan
        before = [p.detach().clone() for p in self.model.parameters()]
        try:
            return (yield from true(self, step, clock))
        finally:
            if step == 4:  # the update did not happen
                pairs = zip(self.model.parameters(), before, strict=True)
                assert all(torch.equal(a, b) or a.isnan().any() for a, b in pairs)

    monkeypatch.setattr(TrainingRun, "advance", poisoned)
    manifest = train(plain({"intervention": name}), tmp_path)
    assert manifest["status"] == "diverged" == read_json(tmp_path / "manifest.json")["status"]
    lines = read_lines(tmp_path / "steps.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] is None and lines[-1]["diverged"] == "the loss is nan at step 4"
    assert checkpoints.steps(tmp_path / "checkpoints") == [1, 2]
    assert train(plain({"intervention": name}), tmp_path)["status"] == "diverged"


def test_a_rate_that_is_too_high_diverges_by_itself(tmp_path: Path):
    values = {"optim.lr": 100.0, "optim.clip": 0.0, "optim.warmup": 0, "optim.eps": 0.0, "train.steps": 200}
    values |= {"model.n_layers": 2, "optim.weight_decay": 1e4}
    manifest = train(plain(values), tmp_path)
    assert manifest["status"] == "diverged"
    lines = read_lines(tmp_path / "steps.jsonl")
    assert lines[-1]["loss"] is None and all(line["loss"] is not None for line in lines[:-1])


def command(out: Path, *more: str) -> list[str]:
    """`zslx train` of the tests' own tiny run."""
    groups = {g: v for g, v in plain({}).to_dict().items() if g in ("model", "data", "optim", "train", "instruments")}
    settings = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    settings |= dict(item.split("=") for item in more)
    return [
        sys.executable,
        "-m",
        "zslx",
        "train",
        "smoke",
        *(f"{k}={v}" for k, v in settings.items()),
        "--out",
        str(out),
    ]


def run_with_small_files(out: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """`zslx train` where no file can grow beyond `limit` bytes, as on a disk that is full."""

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(command(out), capture_output=True, text=True, preexec_fn=small, timeout=120)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path):
    config = plain({})
    whole = trained(config, tmp_path / "whole")
    size = (whole.folder / "checkpoints" / "000000006" / "tensors.safetensors").stat().st_size
    done = run_with_small_files(tmp_path / "run", size // 2)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("zslx: error:")]
    assert len(errors) == 1 and "Traceback" not in done.stderr and "File too large" in errors[0], done.stderr
    assert read_json(tmp_path / "run" / "manifest.json")["status"] in ("running", "failed")
    assert not checkpoints.steps(tmp_path / "run" / "checkpoints")
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))


def test_a_disk_that_fills_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The checkpoints before it count; with room again the run ends as if nothing had been."""
    whole = trained(plain({}), tmp_path / "whole")
    true = os.fsync
    calls = iter(range(10**9))
    with monkeypatch.context() as patch:

        def full(handle: int) -> None:
            if next(calls) > 20:
                raise OSError(28, "No space left on device")
            true(handle)

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(plain({}), tmp_path / "run")
    assert 0 < len(checkpoints.steps(tmp_path / "run" / "checkpoints")) < 4
    train(plain({}), tmp_path / "run")
    assert whole.difference(Outcome.read(tmp_path / "run")) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot hold a run \(Permission denied\)"):
        train(plain({}), tmp_path / "run")


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match=r"run cannot hold a run \(File exists\): give a folder"):
        train(plain({}), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_plugin_that_fails_leaves_failed_and_can_be_mended(plugins: Path, tmp_path: Path):
    source = """
from dataclasses import dataclass
from zslx.intervention.base import Intervention

@dataclass(frozen=True)
class Mine(Intervention):
    name = "mine"

    def token_weights(self, run, view, state):
        if run.step == 3:
            1 / 0
        return view.losses
"""
    (plugins / "mine.py").write_text(source)
    out, config = tmp_path / "run", plain({"intervention": "mine"} | BLIND)
    expected = "intervention 'mine', hook token_weights, step 3: ZeroDivisionError: division by zero"
    with pytest.raises(ValueError, match=expected):
        train(config, out)
    manifest = read_json(out / "manifest.json")
    assert manifest["status"] == "failed" and expected in manifest["error"]
    (plugins / "mine.py").write_text(source.replace("1 / 0", "pass"))
    with pytest.raises(ValueError, match="plugin source"):  # another identity: not a continuation
        train(config, out)
    assert str(text()) not in str(manifest)


def test_what_a_plugin_raises_is_one_line_with_its_place(plugins: Path, tmp_path: Path):
    """Of the plugin's own file, also where what it called has raised."""
    (plugins / "rude.py").write_text(
        RUDE.replace("view.losses.mul_(0)", "view.losses.view(3, -1)\n        raise KeyError('one\\n two')")
    )
    with pytest.raises(ValueError, match=r"step 1: RuntimeError: shape .* \(rude\.py:12\)$"):
        train(plain({"intervention": "rude"}), tmp_path / "run")
    (plugins / "rude.py").write_text(RUDE.replace("view.losses.mul_(0)", "raise ValueError('one\\n  two')"))
    with pytest.raises(ValueError, match=r"step 1: ValueError: one; two \(rude\.py:12\)$"):
        train(plain({"intervention": "rude"}), tmp_path / "again")
    assert "\n" not in read_json(tmp_path / "again" / "manifest.json")["error"]


def test_a_plugin_that_ends_the_process_is_told_of_by_the_next_command(plugins: Path, tmp_path: Path):
    """Nothing can be said while the process ends; what it leaves does not look finished."""
    end = RUDE.replace("import dataclass\n", "import dataclass\nimport os\n").replace(
        "view.losses.mul_(0)", "os._exit(0)"
    )
    (plugins / "rude.py").write_text(end)
    out = tmp_path / "run"
    first, second = (
        subprocess.run(command(out, "intervention=rude"), capture_output=True, text=True, timeout=120) for _ in range(2)
    )
    assert read_json(out / "manifest.json")["status"] == "running" and first.stderr == ""
    told = "begun before and not finished (stopped, killed, or ended by a plugin)"
    assert f"{out}: {told}" in second.stderr


def test_a_run_that_pauses_says_so_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    for more, said in (
        (["run.until=4"], f"{out}: paused at step 4 of 6 (run.until); the same command with a later one goes on"),
        ([], f"{out}: begun before and not finished (paused)"),
    ):
        assert main(command(out, "train.steps=6", *more)[3:]) == 0
        shown = capsys.readouterr()
        assert said in shown.err and shown.out.startswith(f"{4 if more else 6} steps, ")
    assert read_json(out / "manifest.json")["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_command_with_one_line(number: int, code: int, cache: Path, tmp_path: Path):
    out = tmp_path / "run"
    running = subprocess.Popen(command(out, "train.steps=1000000"), stderr=subprocess.PIPE, text=True)
    while not checkpoints.steps(out / "checkpoints"):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert err.endswith("zslx: stopped; the same command goes on where this one was\n") and "Traceback" not in err


def test_what_is_refused_leaves_no_run_behind(tmp_path: Path):
    """The mended command runs in the same folder."""
    with pytest.raises(ValueError, match="rho1 needs a reference model"):
        train(plain({"intervention": "rho1"}), tmp_path / "run")
    assert train(plain({}), tmp_path / "run")["status"] == "finished"


def test_a_method_that_changes_the_losses_it_sees_does_not_change_the_record(plugins: Path, tmp_path: Path):
    (plugins / "rude.py").write_text(RUDE)
    train(plain({}), tmp_path / "plain")
    train(plain({"intervention": "rude"}), tmp_path / "rude")
    losses = [read_run(tmp_path / name).steps["loss"] for name in ("plain", "rude")]
    assert (losses[0] == losses[1]).all()


RUDE = """
from dataclasses import dataclass

from zslx import Intervention


@dataclass(frozen=True)
class Rude(Intervention):
    name = "rude"

    def token_weights(self, run, view, state):
        view.losses.mul_(0)
        return view.losses + 1
"""


def test_a_state_that_no_checkpoint_can_keep_is_named(plugins: Path, tmp_path: Path):
    (plugins / "hoarder.py").write_text(
        RUDE.replace("rude", "hoarder").replace("view.losses.mul_(0)", "state['x'] = {1}")
    )
    with pytest.raises(ValueError, match="step 1: /interventions/hoarder/x: a set cannot be kept"):
        train(plain({"intervention": "hoarder"}), tmp_path / "run")


@pytest.mark.medium
@pytest.mark.parametrize("surgery", ["pcgrad", "agreement"])
@pytest.mark.parametrize(
    "weighting", ["focal", "mile", "sow", "infobatch", "poly", "confidence_penalty", "token_alignment"]
)
def test_every_weighting_runs_together_with_surgery(surgery: str, weighting: str, tmp_path: Path):
    config = plain({"intervention": f"{surgery}+{weighting}", "train.steps": 2} | BLIND)
    assert train(config, tmp_path / "run")["status"] == "finished"
