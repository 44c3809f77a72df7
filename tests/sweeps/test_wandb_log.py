"""What goes to wandb, and that nothing wandb does can cost a trial. (A whole sweep's files: test_sweep.py.)"""

from __future__ import annotations

import json

import pytest

from sweeps import wandb_log
from sweeps.wandb_log import Labels
from zslx.config.run_config import Config
from zslx.runs.json_files import write_json
from zslx.runs.records import RunRecords, read_run
from zslx.tracking.rows import Rows
from zslx.tracking.summary import about


@pytest.fixture
def run(tmp_path):
    """A run folder with three steps and two probes, settings that name places, and a loss that was not finite."""
    folder = tmp_path / "trials" / "0123456789abcdef"
    with RunRecords(folder) as records:
        records.append_probe({"step": 0, "tokens": 0, "heldout_loss": 8.0})
        for step, loss in ((1, 7.5), (2, 7.0), (3, float("nan"))):
            records.append_step({"step": step, "tokens": 64 * step, "loss": loss, "clipped": step == 1})
        records.append_probe({"step": 2, "tokens": 128, "heldout_loss": 7.1, "dt1_batch": {"D": 0.5, "n": 64}})
    data = {"path": "/home/someone/text", "vocab_size": 400}
    config = Config(intervention="none", reference="/home/someone/run").to_dict()
    write_json(folder / "config.json", config | {"data": data})
    write_json(folder / "manifest.json", {"status": "diverged", "identity": "0123456789abcdef", "totals": {"steps": 3}})
    return folder


def labels(folder) -> Labels:
    return Labels(results=str(folder.parent.parent), study="a-study", arm="baseline", size="0.1M", seed=0)


def test_history_joins_steps_and_probes(run):
    assert Rows(run).new(whole=True) == [
        {"step": 0, "probe/heldout_loss": 8.0},
        {"step": 1, "tokens": 64.0, "loss": 7.5, "clipped": 1.0},
        {
            "step": 2,
            "tokens": 128.0,
            "loss": 7.0,
            "clipped": 0.0,
            "probe/heldout_loss": 7.1,
            "probe/dt1_batch/D": 0.5,
            "probe/dt1_batch/n": 64,
        },
        {"step": 3, "tokens": 192.0, "clipped": 0.0},
    ]


def test_settings_that_name_places_stay_here(run):
    config = about(read_run(run))
    assert "/home" not in json.dumps(config) and config["data"] == {"vocab_size": 400}
    assert read_run(run).config["data"]["path"] == "/home/someone/text"


def test_off_writes_nothing(run):
    assert wandb_log.log(run, labels(run), "off") is None
    assert not (run.parent.parent / "wandb").exists()


def test_what_goes_wrong_is_told_not_raised(run):
    (run.parent.parent / "wandb").write_text("in the way")
    assert "wandb" in str(wandb_log.log(run, labels(run), "offline"))


@pytest.mark.medium
def test_logged_once_also_when_asked_again(run, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    results = run.parent.parent
    assert wandb_log.log(run, labels(run), "offline") is None
    [first] = results.glob("wandb/offline-run-*")
    written = first.stat().st_ino
    assert wandb_log.log(run, labels(run), "offline") is None
    wandb_log.close()
    [second] = results.glob("wandb/offline-run-*")
    assert second == first and second.stat().st_ino == written, "not removed and written again"
    assert capfd.readouterr() == ("", "")
    kept = [path for path in results.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"k" * 40 in path.read_bytes()]


@pytest.mark.medium
def test_a_trial_of_two_studies_is_one_run_and_a_torn_one_is_removed(run):
    results = run.parent.parent
    identifier = labels(run).run_id(run)
    torn = results / "wandb" / f"offline-run-20260101_000000-{identifier}"
    torn.mkdir(parents=True)
    other = Labels(results=str(results), study="another-study", arm="none", size="0.1M", seed=0)
    assert other.run_id(run) == identifier
    for each in (labels(run), other):
        assert wandb_log.log(run, each, "offline") is None
    wandb_log.close()
    assert len(list(results.glob("wandb/offline-run-*"))) == 1 and not torn.exists()
