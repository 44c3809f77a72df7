"""The run of a study in wandb: what its trials came to together. Its group is that of the trials, its job type `study`.

It holds the tables of the report (wandb's tables), the report as one page, the comparison as JSON, and in its summary
the word and the numbers about each arm; its configuration says how the study was declared, so that whoever has the
trials' runs can compare them again. Offline all of this lies in the folder of the run; an artifact of page and
comparison is made online alone, since wandb's offline files name artifacts by paths of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.inference.rows import Comparison
from analysis.report.blocks import Block, Heading, Table
from analysis.report.wandb_report import PAGE, study_run_id
from zslx.runs.json_files import write_json
from zslx.slug import slug
from zslx.tracking.wandb_run import WandbRun

COMPARISON = "comparison.json"
LONGEST_NAME = 100  # of an artifact


def log_study(
    declared: Mapping[str, Any],
    comparison: Comparison,
    blocks: Sequence[Block],
    page: Path,
    results: Path,
    mode: str,
) -> None:
    """Log the study's run, in place of one that was logged before; `declared` is its study.json. Raises whatever wandb
    raises."""
    study = declared["name"]
    identifier = study_run_id(study)
    config = {"study": study, "declaration": dict(declared), "rule": comparison["rule"]}
    named = dict(tables(blocks))
    shown = [PAGE, *(f"tables/{key}" for key in named)]
    names: dict[str, Any] = {"name": study, "group": study, "job_type": "study", "tags": ["study"]}
    run = WandbRun(identifier, results, mode, config, shown=shown, **names)
    ok = False
    try:
        _log(run.run, comparison, named, page, slug(study, LONGEST_NAME), artifact=mode == "online")
        ok = True
    finally:
        run.close(summary(comparison) if ok else None, ok=ok)


def _log(run: Any, comparison: Comparison, named: Mapping[str, Table], page: Path, name: str, artifact: bool) -> None:
    import wandb

    logged: dict[str, Any] = {PAGE: wandb.Html(str(page), inject=False)}
    for key, table in named.items():
        rows = [list(row) for row in table.rows]
        logged[f"tables/{key}"] = made = wandb.Table(columns=list(table.columns), data=rows)
        # As a file of the run. Else wandb makes an artifact of it, too, which names a path of this machine.
        made.bind_to_run(run, f"tables/{key}", 0)
    run.log(logged)
    path = Path(run.dir) / COMPARISON
    write_json(path, comparison)
    run.save(str(path), base_path=run.dir, policy="now")
    if artifact:
        both = wandb.Artifact(f"report-{name}", type="report")
        both.add_file(str(page), name="report.html")
        both.add_file(str(path), name=COMPARISON)
        run.log_artifact(both)


def tables(blocks: Sequence[Block]) -> Iterator[tuple[str, Table]]:
    """The tables of a report by the section in which they stand and their place there."""
    section, number = "answer", 0
    for block in blocks:
        if isinstance(block, Heading):
            section, number = block.anchor, 0
        elif isinstance(block, Table):
            number += 1
            yield f"{section}-{number}", block


def summary(comparison: Comparison) -> dict[str, Any]:
    """What the study says of each arm, and of each arm at a size, by their names."""
    found: dict[str, Any] = {
        "exploratory": comparison["exploratory"],
        **{f"trials/{status}": n for status, n in comparison["trials"].items()},
    }
    for row in comparison["contrasts"] + comparison["declared_contrasts"]:
        baseline = row in comparison["contrasts"]
        name = row["arm"] if baseline else f"{row['arm']} against {row['against']}"
        found[f"{name}/word"] = row["word"]
        for key, value in (row["primary"] or {}).items():
            found[f"{name}/log_difference/{key}"] = value
    for cell in comparison["cells"]:
        values: Mapping[str, Any] = cell
        for measure in ("heldout_loss", "tail_slope", "L_d", "t_d", "r_d", "difference", "cost"):
            for key, value in (values[measure] or {}).items():
                found[f"{cell['arm']}/{cell['size']}/{measure}/{key}"] = value
    return {key: value for key, value in found.items() if value is not None}
