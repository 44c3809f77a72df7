"""Which studies of a results folder looked at a comparison before: study.json keeps them, a comparison says them.

Who looks after 10 seeds and goes on to 14 has looked twice, and plain intervals of 95 % are those of a single look
(looks that are planned have wider ones: analysis/inference/looks.py). Trials are shared through the ledger: such a look
trains nothing twice, and would leave no trace.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from analysis.study.declaration import FILE, Declaration, Look
from zslx.runs.records import OVER


def earlier_looks(study: Declaration, before: Declaration | None, studies: Path) -> tuple[Look, ...]:
    """The other studies in the folder `studies` that looked at the comparison of `study`, oldest first.

    `before`: the study.json that `study` is about to replace; None where there is none. What it says is kept. A study
    that was first asked for later counts as long as this one is not done: it was there before this one's last trial.
    """
    found = {look.name: look for look in (before.earlier if before else ())}
    done = before and before.seeds == study.seeds and all(trial.status in OVER for trial in before.trials)
    for path in studies.glob(f"*/{FILE}"):
        if path.parent.name == study.name:
            continue
        with contextlib.suppress(ValueError):  # damaged: it costs no other study
            other = Declaration.read(path.parent)
            if looked(other, study) and not (done and (other.created or "") >= (study.created or "")):
                look = Look(name=other.name, created=other.created, seeds=other.seeds, looks=other.looks)
                found[look.name] = look
    return tuple(sorted(found.values(), key=lambda look: (look.created or "", look.name)))


def looked(other: Declaration, study: Declaration) -> bool:
    """Whether `other` compared an arm of `study` with the baseline, on trials of both, but after other seeds or by
    another plan of looks."""
    if planned_alike(other, study):
        return False
    done = {trial.identity for trial in other.trials if trial.finished}
    return all(done & trials_of(other, role) & trials_of(study, role) for role in ("baseline", "arm"))


def planned_alike(a: Declaration, b: Declaration) -> bool:
    """Whether both are judged after the same seeds, or stand at looks of one plan, whose intervals account for all."""
    if not a.looks or not b.looks:
        return a.looks == b.looks and set(a.seeds) == set(b.seeds)
    seeds = min(len(a.seeds), len(b.seeds))
    return a.looks == b.looks and a.seeds[:seeds] == b.seeds[:seeds]


def trials_of(study: Declaration, role: str) -> set[str]:
    """The identities of the trials of the arms that have a role."""
    names = {arm.name for arm in study.arms if arm.role == role}
    return {trial.identity for trial in study.trials if trial.arm in names}
