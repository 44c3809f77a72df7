"""The ledger and one trial, without Ray: reuse, resumption, and that the order of trials does not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeps.ledger import FILES as READ
from sweeps.ledger import Ledger, is_done
from sweeps.outcome import Failure
from sweeps.study import build
from sweeps.trial import Job, run, trial
from zslx.commands import cli
from zslx.config.presets import preset
from zslx.config.run_config import parse_overrides
from zslx.places import ROOT
from zslx.runs.identity import identity, ingredients
from zslx.runs.json_files import last_line

FILES = ("config.json", "steps.jsonl", "probes.jsonl")


@pytest.fixture
def config(tiny):
    """A function that gives the configuration of a tiny run."""

    def make(*items: str):
        usual = parse_overrides(preset("smoke").for_size("0.1M"), [*tiny.split(), "train.steps=12"])
        return parse_overrides(usual, items)

    return make


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


POLLUTING = """
import random
from dataclasses import dataclass
import numpy as np
import torch
from zslx import Intervention

CALLS = []

@dataclass(frozen=True)
class Polluting(Intervention):
    "Leaves behind whatever a plugin can; what it computes depends on all of it."
    name = "polluting"
    family = "token_weighting"
    source = "tests"
    cost = "none"

    def token_weights(self, run, view, state):
        CALLS.append(1)
        torch.use_deterministic_algorithms(run.step % 2 == 0)
        drawn = torch.rand(1).item() + random.random() + np.random.rand()
        torch.set_default_dtype(torch.float64)
        if run.step == run.steps:
            torch.set_num_threads(2)
        return torch.ones_like(view.losses) + view.losses * (drawn + 0.1 * len(CALLS))
"""


@pytest.mark.medium
def test_the_order_of_trials_in_one_process_does_not_matter(config, plugins, tmp_path):
    """As in a reused worker: after a plugin that changes every global it can, runs are what they are alone."""
    (plugins / "polluting.py").write_text(POLLUTING)
    configs = {
        "a": config("intervention=polluting"),
        "b": config(),
        "c": config("intervention=polluting", "train.seed=1"),
    }
    for order in ("abc", "cba", "bcaa"):
        for name in order:
            trial(configs[name].to_dict(), tmp_path / order / name)
    for name in configs:
        assert (
            contents(tmp_path / "abc" / name) == contents(tmp_path / "cba" / name) == contents(tmp_path / "bcaa" / name)
        )
    assert contents(tmp_path / "abc" / "a")[1] != contents(tmp_path / "abc" / "b")[1], "the plugin acts"
    torch.set_default_dtype(torch.float32)
    np.random.seed(None)  # noqa: NPY002
    torch.use_deterministic_algorithms(False)


def test_a_finished_trial_is_not_touched(config, tmp_path):
    trial(config().to_dict(), tmp_path / "t")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "t").rglob("*") if p.is_file()}
    assert trial(config().to_dict(), tmp_path / "t")["status"] == "finished"
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before


@pytest.mark.parametrize("damage", ["cut", "gone", "claims"])
def test_what_only_claims_to_be_finished_is_set_aside_and_trained(config, tmp_path, damage):
    folder = tmp_path / "trials" / "t"
    manifest = trial(config().to_dict(), folder)
    good = contents(folder)
    if damage == "cut":
        (folder / "steps.jsonl").write_bytes(good[1][: len(good[1]) // 2])
    elif damage == "gone":
        (folder / "probes.jsonl").unlink()
    else:
        (folder / "manifest.json").write_text(json.dumps(manifest | {"totals": manifest["totals"] | {"steps": 99}}))
    assert not is_done(folder, manifest["identity"])
    trial(config().to_dict(), folder)
    assert contents(folder) == good and is_done(folder, manifest["identity"])
    assert len(list((tmp_path / "trials" / ".damaged").iterdir())) == 1, "set aside, not deleted"


def test_one_identity_has_several_spellings(config, plugins, tmp_path):
    """A half trial begun under another spelling of the same settings goes on."""
    (plugins / "stopping.py").write_text(STOPPING)
    said, unsaid = config("intervention=stopping", "stopping.at=0"), config("intervention=stopping")
    with pytest.raises(Exception, match="not yet"):
        trial(said.to_dict(), tmp_path / "t")
    (tmp_path / "go").touch()
    assert trial(unsaid.to_dict(), tmp_path / "t")["status"] == "finished"
    trial(unsaid.to_dict(), tmp_path / "u")
    assert contents(tmp_path / "t")[1:] == contents(tmp_path / "u")[1:]


STOPPING = """
from dataclasses import dataclass
from pathlib import Path
from zslx import Intervention, setting

@dataclass(frozen=True)
class Stopping(Intervention):
    "Raises at step 9 until the file `go` is there."
    name = "stopping"
    family = "token_weighting"
    source = "tests"
    cost = "none"
    at: int = setting(0, "a setting", low=0)

    def token_weights(self, run, view, state):
        if run.step == 9 and not Path("go").exists():
            raise KeyError("not yet")
        return 1 + view.losses
"""


def test_a_plugin_changed_after_planning_is_refused(config, plugins, tmp_path):
    (plugins / "stopping.py").write_text(STOPPING)
    planned = config("intervention=stopping")
    name = identity(planned)
    (plugins / "stopping.py").write_text(STOPPING.replace("1 + view", "2 + view"))
    with pytest.raises(ValueError, match="changed while the sweep was running"):
        trial(planned.to_dict(), tmp_path / "t", expected=name)
    assert not (tmp_path / "t" / "steps.jsonl").exists()


def in_process(values: dict, folder: Path) -> subprocess.Popen:
    code = "import json, sys; from sweeps.trial import trial; trial(json.loads(sys.argv[1]), sys.argv[2])"
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(values), str(folder)])


@pytest.mark.medium
def test_a_trial_that_another_process_trains_is_awaited_and_taken_over(config, tmp_path):
    """The second process waits; when the first is killed it goes on from its checkpoint."""
    values = config("train.steps=400", "run.resume_seconds=0.2").to_dict()
    alone = tmp_path / "alone"
    trial(values, alone)
    first = in_process(values, tmp_path / "t")
    end = time.monotonic() + 60
    while last_line(tmp_path / "t" / "steps.jsonl").get("step", 0) < 50:
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.02)
    second = in_process(values, tmp_path / "t")
    first.kill()
    first.wait(10)
    assert second.wait(60) == 0
    assert contents(tmp_path / "t") == contents(alone)


def test_the_ledger_knows_done_from_half_done(tiny, tmp_path):
    study = build(("none",), "smoke", sizes=["0.1M"], seeds=(0, 1, 2), overrides=[*tiny.split(), "train.steps=8"])
    ledger = Ledger(tmp_path)
    one, two, three = study.trials
    trial(one.config.to_dict(), ledger.folder(one.key), expected=one.identity)
    trial(two.config.to_dict(), ledger.folder(two.key), expected=two.identity)
    manifest = ledger.folder(two.key) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("finished", "running"))
    assert [ledger.status(t) for t in study.trials] == ["finished", "partial", "missing"]
    done, pending = ledger.split([*study.trials, one])
    assert done == [one] and pending == [two, three]


@pytest.mark.medium
def test_the_python_example_trains_trials_that_can_be_compared(tiny, tmp_path, capsys):
    """docs/sweeps.md, as written but for smaller trials."""
    code = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    small = f'build(("pcgrad",), "smoke", sizes=["0.1M"], seeds=(0, 1), overrides={[*tiny.split(), "train.steps=20"]})'
    assert code.count('build(("pcgrad",), "smoke")') == 1
    exec(code.replace('build(("pcgrad",), "smoke")', small), {})
    assert cli.main(["compare", "results"]) == 0
    shown = capsys.readouterr().out
    assert "baseline" in shown and "pcgrad" in shown and "failed" not in shown


def test_a_trial_says_whether_this_process_trained_it(config, tmp_path):
    values = config().to_dict()
    about = {"results": str(tmp_path), "study": "s", "arm": "baseline", "size": "0.1M", "seed": 0}
    job = Job(
        config=values,
        folder=str(tmp_path / "t"),
        identity=identity(config()),
        packed=False,
        working_directory=str(tmp_path),
        labels=about,
        wandb="off",
    )
    assert [run([job])[0]["trained"] for _ in range(2)] == [True, False]


def test_study_json_keeps_the_traceback_of_a_failure(tiny, tmp_path):
    study = build(("none",), "smoke", sizes=["0.1M"], seeds=(0, 1), overrides=tiny.split())
    ledger = Ledger(tmp_path)
    first = study.trials[0]
    path = ledger.record(study, {first.key: Failure("it failed", "where it failed")})
    created = json.loads(path.read_text())["created"]
    assert [t["status"] for t in json.loads(path.read_text())["trials"]] == ["failed", "waiting"]
    assert ledger.traceback(study, first.key).read_text() == "where it failed"
    assert json.loads(ledger.record(study).read_text())["created"] == created


@pytest.mark.parametrize("data", [b"", b'{"step": 3', b"\0\0\0\n", b"[1]\n", b'{"step": 1}\n{"st'])
def test_the_last_line_of_a_damaged_file(tmp_path, data):
    (tmp_path / "f").write_bytes(data)
    assert last_line(tmp_path / "f") == ({"step": 1} if data.startswith(b'{"step": 1}') else {})
    assert last_line(tmp_path / "none") == {}


@pytest.mark.slow
def test_a_trial_of_two_workers_is_the_trial_of_one(config, tmp_path: Path):
    """To rounding, and under the same identity."""
    one, two = config("train.dtype=float64"), config("train.dtype=float64", "run.workers=2")
    assert identity(one) == identity(two)
    assert trial(two.to_dict(), tmp_path / "two")["totals"]["ranks"] == 2
    trial(one.to_dict(), tmp_path / "one")
    last = [last_line(tmp_path / name / "steps.jsonl") for name in ("one", "two")]
    assert last[0]["step"] == last[1]["step"] == 12 and abs(last[0]["loss"] - last[1]["loss"]) < 1e-9


@pytest.mark.parametrize("name", READ)
def test_a_run_that_was_whole_is_looked_at_again_once_a_file_changes(config, tmp_path, name):
    """Also where size and time of the file are what they were."""
    folder = tmp_path / "t"
    identity = trial(config().to_dict(), folder)["identity"]
    assert is_done(folder, identity) and is_done(folder, identity) and not is_done(folder, "0" * 16)
    path, good = folder / name, (folder / name).read_bytes()
    times = path.stat()
    path.write_bytes(good.replace(b"1", b"x"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not is_done(folder, identity)
    path.write_bytes(good)
    assert is_done(folder, identity)
    path.unlink()
    assert not is_done(folder, identity)


def test_a_trial_that_is_made_of_other_things_says_of_which(config, plugins, tmp_path):
    """What was planned against what a worker, on another node perhaps, has."""
    (plugins / "stopping.py").write_text(STOPPING)
    planned = config("intervention=stopping")
    parts = ingredients(planned)
    (plugins / "stopping.py").write_text(STOPPING.replace("1 + view", "2 + view"))
    values = planned.to_dict()
    job = Job(
        config=values,
        folder=str(tmp_path / "t"),
        identity="0" * 16,
        made_of={**parts, "torch": "2.0"},
        packed=False,
        working_directory=str(tmp_path),
        labels={"results": str(tmp_path), "study": "s", "arm": "a", "size": "0.1M", "seed": 0},
        wandb="off",
    )
    told = r"^the source plugins/stopping\.py, torch \(.*, and 2\.0 was planned\) changed .* or node [^ ]+ has another"
    with pytest.raises(ValueError, match=told):
        run([job])
