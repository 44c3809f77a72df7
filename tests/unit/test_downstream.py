"""Scores of a run's checkpoints on a task of lm-evaluation-harness with local data, against the native model's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zslx.commands.cli import main
from zslx.config.run_config import Config
from zslx.probing.probe import ProbeSettings, RunProbe
from zslx.runs.evaluations import FILE, read_evaluations
from zslx.training.train import train

pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'zslx[downstream]'")
pytestmark = pytest.mark.medium

DOCUMENTS = [
    {"start": "def read(", "choices": [" self", " path", " import"], "answer": 1},
    {"start": "import", "choices": [" os", " the", " return x"], "answer": 0},
    {"start": "return", "choices": [" None", " class"], "answer": 0},
    {"start": "for i in", "choices": [" lambda", " range", " in"], "answer": 1},
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tasks `next` and `again`."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.json").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name in ("next", "again"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"zslx_{name}", data=folder / "data.json"))
    return folder


def accuracy(run: Path, step: int) -> float:
    """The share of documents whose right choice has the largest sum of log-probabilities, by the native model."""
    trained, _, _ = RunProbe(run, ProbeSettings()).restored(step)
    tokenizer = trained.loader.corpus.tokenizer

    def score(start: str, choice: str) -> float:
        # lm-eval cuts the whole at the length of the start's own tokens.
        ids, cut = tokenizer.encode(start + choice).ids, len(tokenizer.encode(start).ids)
        with torch.no_grad():
            logs = trained.model(torch.tensor([ids])).log_softmax(-1)[0]
        return sum(float(logs[i - 1, ids[i]]) for i in range(cut, len(ids)))

    right = 0
    for document in DOCUMENTS:
        scores = [score(document["start"], choice) for choice in document["choices"]]
        right += scores.index(max(scores)) == document["answer"]
    return right / len(DOCUMENTS)


def evaluate(run: Path, tasks: Path, names: str = "zslx_next", *more: str) -> int:
    return main(["evaluate", str(run), "--tasks", names, "--include", str(tasks), *more])


def test_scores_are_those_of_the_native_model_and_are_kept(
    tiny: Callable[..., Config], tmp_path: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny(), run)
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    assert evaluate(run, tasks, "zslx_next", "--steps", "1,6") == 0
    first, last = read_evaluations(run)
    assert [first["step"], last["step"]] == [1, 6] and last["samples"] == {"zslx_next": 4}
    for record in (first, last):
        assert record["scores"]["zslx_next"]["acc"] == pytest.approx(accuracy(run, record["step"]))
        assert record["scores"]["zslx_next"]["acc_stderr"] >= 0
    assert f"step 6  zslx_next  acc {last['scores']['zslx_next']['acc']:.4f} ± " in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.name in before} == before

    # What a killed evaluation was writing is cut off; what is there is not evaluated again, and what is new is.
    with open(run / FILE, "a") as file:
        file.write('{"step": 6, "ta')
    assert evaluate(run, tasks, "zslx_next,zslx_again", "--json") == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert [e["task"] for e in listed["evaluations"]] == ["zslx_next", "zslx_again"]
    assert listed["evaluations"][0] == last and len(read_evaluations(run)) == 3
    # Other settings, and a task file that was changed, are another evaluation.
    assert evaluate(run, tasks, "zslx_next", "--limit", "2") == 0
    assert read_evaluations(run)[-1]["samples"] == {"zslx_next": 2}
    (tasks / "next.yaml").write_text((tasks / "next.yaml").read_text().replace("1.0", "2.0"))
    assert evaluate(run, tasks) == 0
    assert len(read_evaluations(run)) == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("task", "--tasks zslx_nex: lm-eval has no such task; did you mean zslx_next"),
        ("step", "no checkpoint at step 5"),
        ("folder", "no such folder"),
        ("data", "--tasks zslx_next: lm-eval cannot evaluate it: "),
        ("records", r"evaluations.jsonl:1: step must be a whole number"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(
    damage: str, message: str, tiny: Any, tmp_path: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny(), run)
    if damage == "data":
        (tasks / "data.json").write_text("{")
    if damage == "records":
        (run / FILE).write_text('{"step": "x", "task": "a", "key": "b"}\n')
    where = tmp_path / "other" if damage == "folder" else tasks
    name = "zslx_nex" if damage == "task" else "zslx_next"
    assert evaluate(run, where, name, *(["--steps", "5"] if damage == "step" else [])) == 2
    assert message in capsys.readouterr().err
