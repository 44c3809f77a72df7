"""The comparison of a study's arms: one JSON-ready dict, the single source of table, `--json`, report and wandb.

Read `compare_study` top down: it gathers what each arm measures at each size (cells.py), each arm but the baseline
against it, its placebo and its other controls (arm_comparison.py), what is read over sizes (sizes.py), where the study
stands at its look (stopping.py), and the answers (answers.py). The rule is in evidence.py, what is read off a trial in
analysis/study/measures.py; here they meet. Units: losses in nats per token; differences of log loss (−0.01 is 1 %
lower); seconds.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from analysis.inference import evidence
from analysis.inference.answers import answer
from analysis.inference.arm_comparison import compare_arm
from analysis.inference.cells import describe_cell
from analysis.inference.controls import asked_about, declared
from analysis.inference.imported_curves import imported_row
from analysis.inference.pooled_breaks import PooledBreaks, load
from analysis.inference.rows import Comparison
from analysis.inference.sizes import describe_size, trends
from analysis.inference.stopping import looks
from analysis.study.load import Study, environment


def compare(results: Path | str, study: str | None = None) -> Comparison:
    """Everything that the records of one study (the newest by default) say. ValueError when there is none."""
    return compare_study(load(results, study))


def compare_study(breaks: PooledBreaks) -> Comparison:
    """The comparison of a loaded study, whose fits `breaks` makes."""
    measures, study = breaks.measures, breaks.study
    contrasts = [compare_arm(breaks, arm) for arm in study.arms if arm.role != "baseline"]
    asked = {arm.name for arm in study.arms if asked_about(study, arm)}
    more = [compare_arm(breaks, arm, against) for arm, against in declared(study)]
    answered = [row for row in contrasts if row["arm"] in asked] + more
    stand = looks(measures)
    answers = [answer(study, row, breaks.kind, stand) for row in answered]
    seeds = [c["primary"]["seeds"] for c in contrasts + more if c["primary"]]
    found: Comparison = {
        "study": study.name,
        "preset": study.preset,
        "created": study.created,
        "command": study.command,
        "verdict_command": study.verdict_command,
        "exploratory": study.exploratory or not seeds or min(seeds) < evidence.VERDICT_SEEDS,
        "answers": answers,
        "looks": stand,
        "sizes": [describe_size(measures, size) for size in study.sizes],
        "seeds": list(study.seeds),
        "arms": [
            {
                "name": a.name,
                "intervention": a.intervention,
                "role": a.role,
                "of": a.of,
                "settings": dict(a.settings),
            }
            for a in study.arms
        ],
        "protocol": breaks.protocol(),
        "tuning": study.tuning,
        "cells": [describe_cell(breaks, arm, s) for s in range(len(study.sizes)) for arm in study.arms],
        "contrasts": contrasts,
        "declared_contrasts": more,
        "scale_parts": breaks.scale_parts(),
        "trends": trends(breaks),
        "failures": [
            {"arm": t.arm, "size": t.size, "seed": t.seed, "status": t.status, "error": t.error}
            for t in study.trials
            if not t.finished
        ],
        "trials": dict(Counter(t.status for t in study.trials)),
        "provenance": provenance(study),
        "rule": (evidence.__doc__ or "").strip(),
    }
    if study.earlier:
        found["earlier"] = [look.to_dict() for look in study.earlier]
    if study.imported:
        found["imported"] = [imported_row(one) for one in study.imported]
    return found


def provenance(study: Study) -> dict[str, Any]:
    """Identities, versions and hardware of the finished trials."""
    finished = [t for t in study.trials if t.finished]
    first: dict[str, Any] = dict(finished[0].manifest) if finished else {}
    revisions = sorted({str(t.manifest["revision"]) for t in finished if t.manifest.get("revision")})
    return {
        "environment": environment(finished[0]) if finished else {},
        "versions": first.get("versions") or {},
        "hardware": first.get("hardware") or {},
        "revisions": revisions,
        "identities": [{"arm": t.arm, "size": t.size, "seed": t.seed, "identity": t.identity} for t in study.trials],
    }
