"""Scores of a run's checkpoints on downstream tasks: RUN/evaluations.jsonl, a line a checkpoint and task. Torch-free.

    step, task            the checkpoint, and the task or group that was asked for
    scores                of the task, and of each task of a group: {name: {metric: score}}; acc_stderr is acc's error
    samples               {name: number of samples}
    few_shot, limit       examples in the context (null: as the task has it); the first so many samples (0: all)
    key                   what scores depend on beside weights and task: settings, own task files, lm-eval's version

Written by `zslx evaluate` (zslx/probing/downstream.py), after training; a run that was not evaluated has no such file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zslx.runs.json_files import read_lines
from zslx.runs.shapes import Shape, check

FILE = "evaluations.jsonl"
SHAPE: Shape = {
    "step": int,
    "task": str,
    "key": str,
    "few_shot": int | None,
    "limit": int,
    "scores": {"*": {"*": int | float | None}},
}


def read_evaluations(folder: str | Path) -> list[dict[str, Any]]:
    """The evaluations of a run, in the order in which they were made; of two that are the same, the later one.

    ValueError, naming the file, where it is damaged.
    """
    path = Path(folder) / FILE
    lines = read_lines(path) if path.exists() else []
    for number, line in enumerate(lines, 1):
        check(f"{path}:{number}", line, SHAPE)
    return list({(line["step"], line["task"], line["key"]): line for line in lines}.values())
