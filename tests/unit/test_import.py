"""Loss curves of other tools come in as they were logged, and an imported arm is fitted, drawn and never compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import SummaryWriter

from analysis.inference.compare import compare
from analysis.inference.imported_curves import NOT_COMPARED
from analysis.inference.pooled_breaks import load
from analysis.report.imported_blocks import imported
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from zslx.commands.cli import main
from zslx.deceleration.curve_file import CurveError
from zslx.deceleration.logged_curves import read_all

STEPS = np.arange(1, 1501)
L_D, T_D, R_D = 4.0, 150.0, 0.05


def planted(seed: int = 0) -> np.ndarray:
    """A curve of known break with the noise of single steps."""
    bend = np.log1p((STEPS / T_D) ** (1 / 0.2)) * 0.2
    clean = np.log(L_D) - 0.25 * np.log(STEPS / T_D) + (0.25 - R_D) * bend
    return np.exp(clean + np.random.default_rng(seed).normal(0, 0.005, len(STEPS)))


LOSSES = planted()


def csv(folder: Path) -> tuple[Path, tuple[str, str]]:
    rows = "\n".join(f"{s},{y!r}" for s, y in zip(STEPS, LOSSES.tolist(), strict=True))
    (folder / "theirs.csv").write_text(f"step,loss\n{rows}\n")
    return folder / "theirs.csv", ("step", "loss")


def export(folder: Path) -> tuple[Path, tuple[str, str]]:
    """A chart with two runs, of which the other one logs every tenth step."""
    lines = [
        '"Step","theirs - train/loss","theirs - train/loss__MIN","theirs - train/loss__MAX","other - x - train/loss"'
    ]
    for s, y in zip(STEPS, LOSSES.tolist(), strict=True):
        lines.append(f'"{s}","{y!r}","0","9","{2 * y!r}"' if s % 10 == 0 else f'"{s}","{y!r}","0","9",""')
    (folder / "wandb_export.csv").write_text("\n".join(lines) + "\n")
    return folder / "wandb_export.csv", ("step", "loss")


def trainer(folder: Path) -> tuple[Path, tuple[str, str]]:
    log = [{"step": int(s), "loss": float(y), "epoch": 0.1} for s, y in zip(STEPS, LOSSES, strict=True)]
    log += [{"step": 1500, "eval_loss": 9.0}, {"step": 1500, "train_loss": 5.0, "train_runtime": 1.0}]
    (folder / "theirs").mkdir()
    (folder / "theirs/trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": 1500}))
    return folder / "theirs/trainer_state.json", ("step", "loss")


def events(folder: Path) -> tuple[Path, tuple[str, str]]:
    writer = SummaryWriter(str(folder / "theirs"))
    for s, y in zip(STEPS, LOSSES, strict=True):
        writer.add_scalar("train/loss", y, s)
        writer.add_scalar("lr", 0.1, s)
    writer.close()
    return folder / "theirs", ("step", "train/loss")


@pytest.mark.parametrize("make", [csv, export, trainer, events])
def test_each_format_gives_every_point_under_the_name_of_its_run(make, tmp_path):
    path, columns = make(tmp_path)
    found = read_all(path, columns)
    assert found["theirs"].steps.tolist() == STEPS.tolist()
    np.testing.assert_allclose(found["theirs"].losses, LOSSES, rtol=1e-7 if make is events else 0)
    assert set(found) == ({"theirs", "other - x"} if make is export else {"theirs"})
    if make is export:
        assert found["other - x"].steps.tolist() == STEPS[9::10].tolist()


def test_a_torn_event_file_gives_the_points_before_and_another_is_refused(tmp_path):
    folder, columns = events(tmp_path)
    [path] = folder.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    assert len(read_all(folder, columns)["theirs"].steps) in (1499, 1500)
    with pytest.raises(
        CurveError, match=r"no scalar 'loss' \(--columns step,TAG names one\); there are: 'lr, train/loss'"
    ):
        read_all(folder)
    path.write_bytes(data[:12] + b"\xff" * (len(data) - 12))
    with pytest.raises(CurveError, match="begins no event"):
        read_all(folder, columns)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("trainer_state.json", '{"log_history": 3}', "no log_history, a list of objects"),
        ("trainer_state.json", "{", "no JSON"),
        (
            "trainer_state.json",
            '{"log_history": [{"step": 1, "loss": NaN}]}',
            "loss is 'nan'; a finite number is needed",
        ),
        ("trainer_state.json", '{"log_history": [{"step": 1}]}', "no row with a `step` and a `loss`"),
        ("a.csv", '"Step","a - loss","a - acc"\n1,2,3\n', "two columns of the run 'a'"),
        ("a.csv", '"Step","a - loss"\n1,-2\n', "loss is -2; it must be above 0"),
        ("a.csv", "x,y\n1,2\n", "one column `step` is needed"),
    ],
)
def test_what_is_no_curve_is_one_line_that_names_the_file(name, text, told, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CurveError) as error:
        read_all(tmp_path / name)
    assert told in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def results(tmp_path) -> Path:
    arms = (BASELINE, SimulatedArm(name="mine", effect=-0.01))
    return write_study(
        tmp_path / "results", np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=2, steps=60, instruments=False
    )


@pytest.mark.medium
def test_an_imported_arm_is_fitted_and_tabled_and_moves_no_other_number(results, tmp_path, capsys):
    before = compare(results)
    assert "imported" not in before
    path, _ = csv(tmp_path)
    name = "<b>theirs|</b>"
    assert main(["import", str(path), "--into", str(results), "--name", name]) == 0
    assert NOT_COMPARED in capsys.readouterr().out
    after = compare(results)
    [row] = after.pop("imported")
    assert json.dumps(after) == json.dumps(before)
    assert row["word"] == NOT_COMPARED and row["source"] == "theirs.csv" and row["status"] == "break"
    for key, true in (("L_d", L_D), ("t_d", T_D), ("r_d", R_D)):
        assert row[key]["low"] < true * (1.1 if key == "t_d" else 1.02)
        assert row[key]["low"] < row[key]["mean"] < row[key]["high"] and row[key]["mean"] == pytest.approx(
            true, rel=0.1
        )
    breaks = load(results)
    figure, table = imported(breaks.study.imported, {**after, "imported": [row]})
    assert table.rows[0][:2] == (name, NOT_COMPARED) and len(figure.panels[0].strokes) == 1
    assert figure.panels[0].marks[0].filled and "heights are not comparable" in figure.caption
    assert main(["compare", str(results)]) == 0
    assert f"→ {name}: {NOT_COMPARED}; its curve decelerates at L_d" in capsys.readouterr().out


def test_a_name_of_the_study_or_twice_the_same_is_refused_and_nothing_is_kept(results, tmp_path, capsys):
    path, _ = csv(tmp_path)
    assert main(["import", str(path), "--into", str(results), "--name", "mine"]) == 2
    assert "nor one of the study's arms: baseline, mine" in capsys.readouterr().err
    assert main(["import", str(path), str(path), "--into", str(results)]) == 2
    assert "a second curve named 'theirs'" in capsys.readouterr().err
    assert main(["import", str(path), "--into", str(results), "--columns", "step"]) == 2
    assert "two names with a comma" in capsys.readouterr().err
    assert not list(results.glob("studies/*/imported/*"))
    (results / "studies/study-0/imported").mkdir()
    (results / "studies/study-0/imported/x.json").write_text(
        '{"name": "x", "source": "", "steps": [2, 1], "losses": [1, 1]}'
    )
    assert main(["compare", str(results)]) == 2
    assert "x.json: steps must increase" in capsys.readouterr().err
