"""`zslx probe`: what it measures is what the run recorded, it goes on after a kill, and leaves the run as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zslx.commands.cli import main
from zslx.config.run_config import Config
from zslx.probing.probe import FILE, ProbeSettings, RunProbe
from zslx.runs.json_files import read_lines, write_json
from zslx.training.train import train

STEPS = 12
SETTINGS = ProbeSettings(n=8)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zslx.testing.subject import plain

    folder = tmp_path_factory.mktemp("runs") / "run"
    values = {"instruments.probes": True, "instruments.heldout_points": 50, "instruments.gradient_sequences": 4}
    train(plain({"train.steps": STEPS, "train.dtype": "float64"} | values), folder)
    return folder


def quiet(share: float, what: str) -> None:
    assert 0 <= share <= 1 and what


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file of the run itself."""
    own = [p for p in folder.rglob("*") if p.is_file() and p.name not in (FILE, ".probe.lock", ".lock")]
    digests = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in own}
    return {name: digest for name, digest in digests.items() if not name.startswith("figures")}


@pytest.fixture(scope="module")
def measured(run: Path) -> dict[int, dict[str, Any]]:
    probe = RunProbe(run, SETTINGS)
    before = contents(run)
    found = probe.measure(probe.steps(), quiet)
    assert contents(run) == before
    return found


def test_equals_what_the_run_recorded(run: Path, measured: dict[int, dict[str, Any]]) -> None:
    own = {line["step"]: line for line in read_lines(run / "probes.jsonl")}
    assert list(measured) == [1, 2, 4, 8, 12]
    for step, record in measured.items():
        for key in ("heldout_loss", "heldout_by_domain", "heldout_by_frequency", "decomposition", "tokens"):
            assert record[key] == own[step][key], (step, key)
        if step < 12:  # the run has a probe at 6, but no checkpoint
            assert record.get("dtt") == own[step].get("dtt")
        assert record["dt1_heldout"] == own[step]["dt1_heldout"]
        names = list(record["heldout_by_domain"])
        assert all(record[key]["by_domain"]["names"] == names for key in ("dt1_heldout", "dtt") if key in record)
        assert record["update_norm"] == own[step]["update_norm"]
        same = ("ratio", "mean", "negative_cosines", "noise_scale")
        assert all(record["grad_sequence"][k] == own[step]["grad_sequence"][k] for k in same)
        assert sum(record["grad_sequence"]["histogram"]) <= record["grad_sequence"]["coordinates"]


def test_identity_of_the_first_order_decomposition(measured: dict[int, dict[str, Any]]) -> None:
    """D(Δℓ̂) from forward-mode products of tokens equals 1 − C_g C_uG / C_ug from sums over coordinates."""
    for record in measured.values():
        first = record["first_order"]
        assert 1 - first["C_g"] * first["C_uG"] / first["C_ug"] == pytest.approx(first["D"], abs=1e-10)
        assert first["true_D"] == pytest.approx(record["dt1_heldout"]["D"], abs=1e-9)
        assert first["true_M"] == pytest.approx(record["dt1_heldout"]["M"], rel=1e-9)
        assert 0 <= first["error"] < 1


def test_all_tokens_make_the_sampled_numbers_exact(run: Path, measured: dict[int, dict[str, Any]]) -> None:
    probe = RunProbe(run, ProbeSettings(n="all"))
    exact = probe.measure([4], quiet)[4]
    sampled = measured[4]
    assert exact["grad_token"]["n"] == exact["grad_token"]["num_tokens"] == exact["dt1_heldout"]["n"]
    assert exact["grad_token"]["ratio_se"] == 0 == exact["first_order"]["relative_se"]
    error = sampled["grad_token"]["ratio_se"]
    assert error > 0 and abs(exact["grad_token"]["ratio"] - sampled["grad_token"]["ratio"]) < 5 * error
    assert exact["first_order"]["D"] == sampled["first_order"]["D"]
    ratios = [r["first_order"]["C_g"] / r["first_order"]["C_ug"] for r in (exact, sampled)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns(FILE, "figures"))
    return to


def test_a_killed_probe_goes_on(
    run: Path, measured: dict[int, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path / "run")
    own = RunProbe._at

    def dying(self: RunProbe, step: int, at: Callable[[str], None]) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return own(self, step, at)

    with monkeypatch.context() as patch:
        patch.setattr(RunProbe, "_at", dying)
        with pytest.raises(KeyboardInterrupt):
            RunProbe(folder, SETTINGS).measure([1, 2, 4, 8, 12], quiet)
    with (folder / FILE).open("ab") as file:  # what the kill left of the third record
        file.write(b'{"step": 4, "probe": "')
    probe = RunProbe(folder, SETTINGS)
    assert probe.records().keys() == {1, 2}
    assert probe.measure([1, 2, 4, 8, 12], quiet) == measured
    assert (folder / FILE).read_text().count("\n") == 5
    monkeypatch.setattr(RunProbe, "_at", None)  # nothing is measured twice
    assert RunProbe(folder, SETTINGS).measure([8, 12], quiet) == {s: measured[s] for s in (8, 12)}


def test_other_settings_are_other_records(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run")
    shorter = ProbeSettings(n=4, sequences=2, seq_len=4)
    found = RunProbe(folder, shorter).measure([2], quiet)[2]
    assert found["dt1_heldout"]["n"] == 8 and found["grad_token"]["num_tokens"] == 8
    assert RunProbe(folder, SETTINGS).records() == {}
    assert RunProbe(folder, shorter).records().keys() == {2}


def test_a_step_that_changes_nothing_has_no_update(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """A rate of 0 moves no weight: no dt1 and no first order, everything else is there."""
    train(tiny(**{"train.steps": 2, "optim.lr": 0.0}), tmp_path)
    found = RunProbe(tmp_path, SETTINGS).measure([2], quiet)[2]
    assert "dt1_heldout" not in found and "first_order" not in found
    assert found["dtt"]["M"] == 0 and found["grad_token"]["ratio"] > 0


@pytest.mark.parametrize("name", ["ema", "schedule_free"])
def test_an_arm_that_averages_is_probed_by_what_it_ships(
    name: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    values = {"train.steps": 4, "train.dtype": "float64", "intervention": name, "instruments.probes": True}
    train(tiny(**values), tmp_path)
    own = {line["step"]: line for line in read_lines(tmp_path / "probes.jsonl")}
    for step, record in RunProbe(tmp_path, SETTINGS).measure([2, 4], quiet).items():
        for key in (
            "heldout_loss",
            "heldout_loss_trained",
            "heldout_by_domain",
            "heldout_by_frequency",
            "decomposition",
        ):
            assert record[key] == own[step][key], (step, key)
        assert record["heldout_loss"] != record["heldout_loss_trained"]


@pytest.mark.medium
def test_command(
    run: Path, measured: dict[int, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = tmp_path / "together"
    assert main(["probe", str(run), "--n", "8", "--json", "--together", str(together)]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [p["step"] for p in out[0]["probes"]] == list(measured) and out[0]["run"] == str(run)
    names = {"interference", "plane", "first_order", "gradients", "decomposition", "histogram"}
    for folder in (run / "figures", together):
        assert {p.name for p in folder.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("png", "svg")}
        assert all(p.stat().st_size > 1000 for p in folder.iterdir())
    assert main(["probe", str(run), "--n", "8", "--steps", "2,4", "--no-figures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].split()[:2] == ["2", f"{measured[2]['heldout_loss']:.4f}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "no checkpoint at step 3; there are 1, 2, 4, 8, 12"),
        (["--steps", "2,x"], "'x' is not a whole number"),
        (["--n", "0"], "0 is below 1"),
        (["--n", "many"], "'many' is not a whole number"),
        (["--sequences", "2", "--seq-len", "100000000"], "fewer than the 100000001 that one window needs"),
    ],
)
def test_what_a_user_can_get_wrong(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["probe", str(run), *arguments, "--no-figures"])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2 and message in capsys.readouterr().err


def test_folders_that_hold_no_finished_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path)]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
    folder = copied(run, tmp_path / "run")
    write_json(folder / "manifest.json", {"status": "running"})
    assert main(["probe", str(run), str(folder)]) == 2
    assert "the run is running, not finished" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"identity": "x"})
    (folder / FILE).write_text('{"step": 1}\nnot json\n')
    assert main(["probe", str(folder), "--no-figures"]) == 2
    assert f"{FILE}:2:" in capsys.readouterr().err


def test_a_text_that_is_not_the_runs_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = copied(run, tmp_path / "run"), tmp_path / "other"
    config = json.loads((folder / "config.json").read_text())
    own = config["data"]["path"]
    shutil.copytree(own, other)
    (other / "letter.txt").write_text("A private letter to nobody at all.")
    (other / "note.txt").write_text("Numbers: " + " ".join(str(i * i) for i in range(500)))
    config["data"]["path"] = str(other)
    write_json(folder / "config.json", config)
    probe = ["probe", str(folder), "--steps", "1", "--n", "4", "--no-figures"]
    assert main(probe) == 2
    assert "is not the text that the run was trained on" in capsys.readouterr().err
    assert main([*probe, "--text", str(other)]) == 2
    assert main([*probe, "--text", own]) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["ingredients"]
    write_json(folder / "manifest.json", manifest)
    capsys.readouterr()
    assert main(probe) == 2
    assert "recorded no hash of its text" in capsys.readouterr().err


def test_a_reference_that_is_not_the_runs_is_refused(cache: Path, tmp_path: Path) -> None:
    """Its text is not looked for at all: a folder from elsewhere may name any path as the text of its reference."""
    from zslx.testing.subject import plain

    for name, seed in (("reference", 0), ("other", 1)):
        train(plain({"train.seed": seed, "train.steps": 2}), tmp_path / name)
    reference = tmp_path / "reference"
    train(plain({"intervention": "rho1", "reference": str(reference), "train.steps": 2}), tmp_path / "run")
    config = json.loads((reference / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "nowhere")
    write_json(reference / "config.json", config)
    measured = RunProbe(tmp_path / "run", SETTINGS).measure([2], quiet)
    assert measured[2]["heldout_loss"] > 0
    shutil.rmtree(reference)
    (tmp_path / "other").rename(reference)
    with pytest.raises(ValueError, match=r"reference=.* is not the run that it was trained with"):
        RunProbe(tmp_path / "run", SETTINGS)


def test_the_probe_leaves_global_generators_alone(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run")
    state = torch.get_rng_state()
    RunProbe(folder, SETTINGS).measure([1], quiet)
    assert torch.equal(torch.get_rng_state(), state)
