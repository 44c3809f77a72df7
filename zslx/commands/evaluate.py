"""`zslx evaluate RUN... --tasks A,B`: scores of checkpoints on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zslx.commands.probe import _positive, _steps
from zslx.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Evaluate checkpoints of runs on tasks of lm-evaluation-harness (pip install 'zslx[downstream]').\n\n"
        "Scores go to RUN/evaluations.jsonl, from where the report and zslx.load_study take them. What is there is\n"
        "not evaluated again: after an interruption the same command goes on. Training is not touched.\n\n"
        "examples:\n"
        "  zslx evaluate runs/one --tasks lambada_openai,piqa\n"
        "  zslx evaluate results/trials/* --tasks blimp --limit 100         # then: zslx report results\n"
        "  zslx evaluate runs/one --tasks mine --include my_tasks --steps 64,1024"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="tasks or groups; `lm-eval ls tasks` lists them")
    parser.add_argument("--steps", metavar="64,1024", type=_steps, help="checkpoints (the last)")
    parser.add_argument("--few-shot", type=_count, metavar="N", help="examples in the context (as the task has it)")
    parser.add_argument("--limit", type=_positive, default=0, metavar="N", help="the first N samples of a task (all)")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="sequences of a pass (8)")
    parser.add_argument("--include", default="", metavar="DIR", help="folder with task files (YAML) of your own")
    parser.add_argument("--text", default="", metavar="PATH", help="where the text of the runs lies now (data.path)")
    parser.add_argument("--json", action="store_true", help="print the records as one JSON list, an object a run")


def run(args: argparse.Namespace) -> int:
    from zslx.probing.downstream import Evaluation, EvaluationSettings, Harness
    from zslx.progress import Progress

    settings = EvaluationSettings(few_shot=args.few_shot, limit=args.limit, include=args.include)
    harness = Harness([task for task in args.tasks.split(",") if task], settings, args.batch_size)
    # Everything that is asked for is checked before the first evaluation.
    runs = [Evaluation(folder, args.text) for folder in dict.fromkeys(args.runs)]
    plans = [one.steps(args.steps) if args.steps else one.available[-1:] for one in runs]
    line, results = Progress("evaluate"), list[list[dict[str, Any]]]()
    for i, (one, steps) in enumerate(zip(runs, plans, strict=True)):

        def at(share: float, what: str, i: int = i, name: str = one.name) -> None:
            line.at((i + share) / len(runs), name, f", {what}")

        results.append(one.evaluate(harness, steps, at))
    line.done(f"{sum(map(len, results))} evaluations of {len(runs)} runs")
    if args.json:
        listed = [{"run": str(r.folder), "evaluations": found} for r, found in zip(runs, results, strict=True)]
        print(json.dumps(listed, indent=1, allow_nan=False))
        return 0
    for one, found in zip(runs, results, strict=True):
        print(printable(str(one.folder)))
        for record in found:
            for name, scores in record["scores"].items():
                print(f"  step {record['step']}  {name}  {shown(scores)}")
    return 0


def shown(scores: dict[str, float]) -> str:
    """`acc 0.3120 ± 0.0096  acc_norm 0.3341 ± 0.0098`: each with its standard error over samples."""
    return "  ".join(
        f"{metric} {value:.4f}" + (f" ± {error:.4f}" if (error := scores.get(_error(metric))) is not None else "")
        for metric, value in scores.items()
        if "_stderr" not in metric and value is not None
    )


def _error(metric: str) -> str:
    """The name of a metric's standard error: `acc_stderr`, or `exact_match_stderr,strict-match` of a filtered one."""
    name, comma, rest = metric.partition(",")
    return f"{name}_stderr{comma}{rest}"


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)
