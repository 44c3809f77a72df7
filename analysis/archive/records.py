"""Whether the records of a trial bear out what its manifest and study.json say of it."""

from __future__ import annotations

import math

from analysis.study.declaration import Entry
from zslx.config.groups import ModelConfig
from zslx.runs.integrity import fault
from zslx.runs.json_files import last_line
from zslx.runs.records import Run
from zslx.runs.timing import time_totals


def records_fault(entry: Entry, run: Run) -> str:
    """What the records of a trial that is done do not bear out; empty if they do. ValueError for damaged lines."""
    if run.status != entry.status:
        return f"study.json says {entry.status}, and its manifest {run.status}"
    return fault(run) or _end_fault(run) or _time_fault(run) or _parameters_fault(run)


def _end_fault(run: Run) -> str:
    diverged = "diverged" in last_line(run.folder / "steps.jsonl")
    if diverged == (run.status == "diverged"):
        return ""
    says = f"{'' if diverged else 'does not '}say{'s' if diverged else ''} that it diverged"
    return f"its manifest says {run.status}, and the last line of steps.jsonl {says}"


def _time_fault(run: Run) -> str:
    """The totals of seconds, from which a step's cost follows."""
    try:
        found = time_totals(run.timing)
    except (KeyError, TypeError):
        return "timing.jsonl: a line lacks its numbers"
    said = run.manifest.get("totals") or {}
    for key, value in found.items():
        if not math.isclose(float(said.get(key) or 0), value, rel_tol=1e-9):
            return f"its manifest says {key} {said.get(key)}, and the lines of timing.jsonl give {value}"
    return ""


def _parameters_fault(run: Run) -> str:
    """The number of parameters, where the settings give it: not of a model of transformers."""
    hashed, said = run.manifest["ingredients"]["config"], run.manifest.get("parameters")
    if said is None or {"hf", "hf_config"} & hashed["model"].keys():
        return ""
    counted = ModelConfig(**hashed["model"]).parameters(hashed["data"]["vocab_size"])._asdict()
    return "" if said == counted else f"its manifest says parameters {said}, and its settings give {counted}"
