"""Whatever happens to a sweep, the same command finishes it, and the records are those of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.medium

# Long enough to be hit (workers train on for two seconds after the driver was killed, up to 550 steps each), with
# checkpoints often enough to matter.
STEPS = 1200
LONG = ("--seeds", "2", "--steps", str(STEPS))
OFTEN = "run.resume_seconds=0.3"
DONE_STEPS = 2 * STEPS


@pytest.fixture(scope="module")
def undisturbed(shared):
    """The records and the comparison of the same study without faults."""
    done = shared("none", *LONG, extra=OFTEN)
    assert done.returncode == 0, done.stderr
    return shared.records(), comparison(shared)


def comparison(sweep) -> dict:
    """`zslx compare --json` without what depends on the clock."""
    command = [*sweep.zslx, "compare", "results", "--json"]
    done = subprocess.run(command, env=sweep.environment, cwd=sweep.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return without_times(json.loads(done.stdout))


def without_times(value):
    if isinstance(value, dict):
        drop = ("seconds", "cost", "created", "time", "compute", "revision")
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in drop)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def finish(sweep, undisturbed) -> None:
    done = sweep("none", *LONG, extra=OFTEN)
    assert done.returncode == 0, done.stdout + done.stderr
    records, compared = undisturbed
    assert sweep.records() == records
    assert comparison(sweep) == compared


@pytest.mark.slow
def test_killed_worker_is_replaced_within_the_sweep(sweep, processes, undisturbed):
    running = sweep.start("none", *LONG, extra=OFTEN)
    processes.wait_for(lambda: sweep.checkpoints(), running)
    os.kill(processes.workers(running.pid)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0, out + err
    assert "2 trained" in out and "failed" not in out
    assert sweep.records() == undisturbed[0]
    finish(sweep, undisturbed)


@pytest.mark.slow
def test_killed_driver_leaves_no_process_and_goes_on(sweep, processes, undisturbed):
    below: list[int] = []
    for _ in range(5):  # a fast machine may be through before its workers notice that the driver is gone
        shutil.rmtree(sweep.results, ignore_errors=True)
        running = sweep.start("none", *LONG, extra=OFTEN)
        processes.wait_for(lambda: sweep.checkpoints(), running)
        training = processes.workers(running.pid)
        below += processes.below(running.pid)
        running.kill()
        running.communicate(timeout=60)
        processes.wait_for(lambda training=training: not [pid for pid in training if processes.alive(pid)], seconds=60)
        if sweep.steps_done() < DONE_STEPS:
            break
    assert sweep.steps_done() < DONE_STEPS, "the driver was killed after the end: the test shows nothing"
    finish(sweep, undisturbed)
    # Ray's idle agents wait a minute for its control process before they end.
    processes.wait_for(lambda: not [pid for pid in below if processes.alive(pid)], seconds=150)


@pytest.mark.slow
def test_a_worker_that_dies_before_it_has_registered_is_replaced(sweep, processes):
    """Killed as soon as its process is there; Ray waits up to a minute for it and then starts another."""
    running = sweep.start("none", "--seeds", "1", "--steps", "40")
    processes.wait_for(lambda: starting(processes, running.pid), running)
    os.kill(starting(processes, running.pid)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0 and "1 trained" in out, out + err


def starting(processes, pid: int) -> list[int]:
    """Workers that do not have a task yet. The raylet's own command line names their program, too."""
    below = processes.below(pid).items()
    return [one for one, command in below if "default_worker.py" in command and "raylet/raylet" not in command]


@pytest.mark.slow
def test_sigterm_while_ray_starts_ends_the_sweep(sweep, processes):
    """Ray's control process is stopped, so that ray.init waits for it in C++ code."""
    running = sweep.start("none", "--seeds", "1", "--steps", "40")
    processes.wait_for(lambda: control(processes, running.pid), running)
    below = processes.below(running.pid)
    os.kill(control(processes, running.pid)[0], signal.SIGSTOP)
    running.terminate()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 143 and "stopped" in out + err and "Traceback" not in err, out + err
    processes.wait_for(lambda: not [pid for pid in below if processes.alive(pid)], seconds=60)


def control(processes, pid: int) -> list[int]:
    return [one for one, command in processes.below(pid).items() if "gcs_server" in command]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_says_how_to_go_on(sweep, processes, undisturbed, number, code):
    running = sweep.start("none", *LONG, extra=OFTEN)
    processes.wait_for(lambda: sweep.checkpoints(), running)
    below = processes.below(running.pid)
    # A terminal signals the whole group, a service manager the command alone.
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, out + err
    assert "make sweep INTERVENTION=none" in out and "Traceback" not in out + err
    processes.wait_for(lambda: not [pid for pid in below if processes.alive(pid)], seconds=60)
    assert sweep.steps_done() < DONE_STEPS
    finish(sweep, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kills_at_random(sweep, processes, undisturbed, seed):
    """Workers, the driver and its whole group, at random times, until the sweep gets through."""
    draws = random.Random(seed)
    for _ in range(3):
        running = sweep.start("none", *LONG, extra=OFTEN)
        time.sleep(draws.uniform(2.0, 25.0))
        victims = draws.choice(["worker", "driver", "group"])
        if victims == "worker":
            for pid in processes.workers(running.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
            running.communicate(timeout=300)
        elif running.poll() is None:
            (os.killpg if victims == "group" else os.kill)(running.pid, signal.SIGKILL)
            running.communicate(timeout=60)
    finish(sweep, undisturbed)


PLUGIN = """
from dataclasses import dataclass
import torch
from zslx import Intervention, setting

@dataclass(frozen=True)
class {cls}(Intervention):
    "A test's own."
    name = "{name}"
    family = "token_weighting"
    source = "tests"
    cost = "none"
    keep_scale = True

    def token_weights(self, run, view, state):
        {body}
"""


def plugin(folder, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(PLUGIN.format(cls=name.title(), name=name, body=body))


def test_plugins_that_raise_or_diverge_cost_only_their_own_trials(sweep, plugins):
    """One that always raises is reported at once, not tried again; one that diverges is a result."""
    plugin(plugins, "raises", "if run.step == 5: raise KeyError('the plugin is wrong')\n        return 1 + view.losses")
    body = "return view.losses.new_full(view.losses.shape, 1e30 if run.step > 7 else 1.0)"
    plugin(plugins, "explodes", body)
    plugin(plugins, "fine", "return 1 + view.losses")
    asked = "raises,explodes,fine"
    done = sweep(asked, "--seeds", "1", "--steps", "20")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: 1 of 4 trials (raises/0.1M/0): intervention 'raises'" in done.stdout
    assert "KeyError: 'the plugin is wrong' (raises.py:" in done.stdout
    states = {t["arm"]: t["status"] for t in sweep.study()["trials"]}
    assert states == {"baseline": "finished", "raises": "failed", "explodes": "diverged", "fine": "finished"}
    [traceback] = sweep.results.glob("studies/*/errors/*.txt")
    assert "raises.py" in traceback.read_text() and "the plugin is wrong" in traceback.read_text()
    assert done.stdout.splitlines()[-1].endswith(".html")

    # The plugin is mended: its trial runs, and no other.
    before = sweep.records()
    plugin(plugins, "raises", "return 1 + view.losses")
    done = sweep(asked, "--seeds", "1", "--steps", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trained, 3 finished before" in done.stdout
    assert before.items() <= sweep.records().items()

    # A changed constant: exactly that plugin's trials again, in a folder of their own.
    plugin(plugins, "fine", "return 2 + view.losses")
    done = sweep(asked, "--seeds", "1", "--steps", "20")
    assert "1 trained, 3 finished before" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_plugin_that_ends_its_process_fails_its_own_trial(sweep, plugins):
    plugin(plugins, "leaves", "if run.step == 5: import os; os._exit(0)\n        return 1 + view.losses")
    done = sweep("leaves", "--seeds", "1", "--steps", "20")
    assert done.returncode == 1, done.stdout + done.stderr
    died = "its process died 3 times (killed, out of memory, or ended by the plugin)"
    assert f"failed: 1 of 2 trials (leaves/0.1M/0): {died}" in done.stdout
    assert {t["arm"]: t["status"] for t in sweep.study()["trials"]} == {"baseline": "finished", "leaves": "failed"}


@pytest.mark.slow
def test_two_sweeps_at_once_train_log_and_count_each_trial_once(sweep):
    first, second = sweep.start("none", *LONG), sweep.start("none", *LONG)
    outputs = [process.communicate(timeout=300) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(list(sweep.results.glob("trials/*/manifest.json"))) == 2
    assert sum(int(re.search(r"(\d+) trained", out)[1]) for out, _ in outputs) == 2, outputs
    logged = [folder.name.rpartition("-")[2] for folder in sweep.results.glob("wandb/offline-run-*")]
    assert len(logged) == len(set(logged)) == 3, "two trials and the study, each once"
    for folder in sweep.results.glob("trials/[0-9a-f]*/"):
        timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
        assert sum(line["steps"] for line in timing) == STEPS, "a second training would have been timed too"


def test_results_that_cannot_be_written_are_refused_before_training(sweep):
    sweep.folder.joinpath("results").write_text("a file, not a folder")
    done = sweep("none", "--seeds", "1", "--steps", "5")
    assert done.returncode == 2
    assert "RESULTS=results cannot be written" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pack", [(), ("--pack", "2")])
def test_full_disk_keeps_what_is_finished(sweep, pack):
    """A results folder on a file system of four megabytes that fills up."""
    sweep.results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(sweep.results)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        done = sweep("none", "--seeds", "8", "--steps", "40", "--wandb", "off", *pack)
        assert done.returncode != 0
        text = done.stdout + done.stderr
        assert "No space left on device" in text and "Traceback" not in text
        finished = [p for p in sweep.results.glob("trials/*/manifest.json") if '"finished"' in p.read_text()]
        before = {p: p.read_bytes() for p in finished}
        assert 0 < len(before) < 8
        subprocess.run(["mount", "-o", "remount,size=64m", str(sweep.results)], check=True)
        done = sweep("none", "--seeds", "8", "--steps", "40", "--wandb", "off", *pack)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{8 - len(before)} trained, {len(before)} finished before" in done.stdout
        assert all(p.read_bytes() == data for p, data in before.items())
    finally:
        subprocess.run(["umount", str(sweep.results)], capture_output=True)
