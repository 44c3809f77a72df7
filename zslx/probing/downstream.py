"""Scores of a run's checkpoints on tasks of lm-evaluation-harness, into RUN/evaluations.jsonl.

The checkpoint is exported to a class of transformers (zslx/model/export.py), which computes the same logits, and
lm-eval's own `HFLM` answers the tasks with it, in float32. Where the method averages weights, they are the averaged
ones. The run's other files are only read. Checkpoints stay, so this is done after training and costs a run nothing.

A record a checkpoint, task and setting; one that is there is not made again, so a killed evaluation goes on. Data sets
of tasks come from the hub, through `datasets`, unless the task names local files. Code of models and data sets is never
run; a task file of one's own may name functions in Python files beside it, which are.

Needs the extra `downstream`. Checked by tests/unit/test_downstream.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zslx.locking import locked
from zslx.probing.probe import ProbeSettings, RunProbe
from zslx.runs.evaluations import FILE, read_evaluations
from zslx.runs.json_files import JsonLines
from zslx.versions import version


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """few_shot: examples in the context (None: the task's own number); limit: samples of each task (0: all).

    include: a folder with task files of one's own.
    """

    few_shot: int | None = None
    limit: int = 0
    include: str = ""


class Harness:
    """lm-evaluation-harness with some of its tasks. ValueError where it is not installed, or a task is unknown."""

    def __init__(self, tasks: list[str], settings: EvaluationSettings, batch_size: int = 8):
        self.tasks, self.settings, self.batch_size = list(dict.fromkeys(tasks)), settings, batch_size
        if settings.include and not Path(settings.include).is_dir():
            raise ValueError(f"--include {settings.include}: no such folder")
        with quiet():
            try:
                from lm_eval.tasks import TaskManager
            except ImportError as error:
                raise ValueError("zslx evaluate needs lm-evaluation-harness: pip install 'zslx[downstream]'") from error
            self.manager = TaskManager(include_path=settings.include or None)
        known = self.manager.all_tasks
        for task in self.tasks:
            if task not in known:
                close = difflib.get_close_matches(task, known, n=3)
                raise ValueError(
                    f"--tasks {task}: lm-eval has no such task"
                    + (f"; did you mean {', '.join(close)}?" if close else "; `lm-eval ls tasks` lists them")
                )

    @cached_property
    def key(self) -> str:
        """16 hex of what scores depend on beside weights and task."""
        root = Path(self.settings.include)  # tasks may use code and data beside them
        every = sorted(root.rglob("*")) if self.settings.include else []
        files = [file for file in every if file.is_file() and "__pycache__" not in file.parts]
        own = [[str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        text = json.dumps([self.settings.few_shot, self.settings.limit, own, version("lm_eval")])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def evaluate(self, model: Any, tokenizer: Any, task: str) -> dict[str, Any]:
        """Scores and numbers of samples of one task or group."""
        with quiet():
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            device = "cuda" if torch.cuda.is_available() else "cpu"
            answering = HFLM(pretrained=model.to(device), tokenizer=tokenizer, batch_size=self.batch_size)
            try:
                found = simple_evaluate(
                    answering,
                    tasks=[task],
                    num_fewshot=self.settings.few_shot,
                    limit=self.settings.limit or None,
                    task_manager=self.manager,
                    log_samples=False,
                    bootstrap_iters=1000,
                )
            except Exception as error:  # of lm-eval, datasets or the network: whatever is wrong is with this task
                line = " ".join(str(error).split())[:300] or type(error).__name__
                raise ValueError(f"--tasks {task}: lm-eval cannot evaluate it: {line}") from error
        scores = found["results"] | found.get("groups", {})
        return {
            "scores": {name: _plain(values) for name, values in scores.items()},
            "samples": {name: int(n["effective"]) for name, n in found.get("n-samples", {}).items()},
        }


class Evaluation(RunProbe):
    """Evaluates the checkpoints of one run."""

    def __init__(self, folder: str | Path, text: str = ""):
        super().__init__(folder, ProbeSettings(), text)

    def evaluate(
        self, harness: Harness, steps: list[int], progress: Callable[[float, str], None]
    ) -> list[dict[str, Any]]:
        """The records of `steps` and of the harness's tasks; those that are missing are made, one by one."""
        with locked(self.folder / ".evaluate.lock"):
            JsonLines(self.folder / FILE).cut()  # what a killed evaluation was writing
            found = {(r["step"], r["task"], r["key"]): r for r in read_evaluations(self.folder)}
            wanted = [(step, task, harness.key) for step in steps for task in harness.tasks]
            missing = [each for each in wanted if each not in found]
            at, exported = -1, (None, None)
            for i, (step, task, key) in enumerate(missing):
                progress(i / len(missing), f"step {step}, {task}")
                if step != at:
                    at, exported = step, self.exported(step)
                record = {"step": step, "task": task, "key": key, "lm_eval": version("lm_eval")}
                record |= {"few_shot": harness.settings.few_shot, "limit": harness.settings.limit}
                record |= harness.evaluate(*exported, task)
                with JsonLines(self.folder / FILE) as file:
                    file.append(record)
                    file.flush()
                found[step, task, key] = record
        return [found[each] for each in wanted]


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by metric: `acc,none` is `acc`, another filter keeps its name; what is no number is left out."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "sample_len"
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and what it imports say nothing but errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
