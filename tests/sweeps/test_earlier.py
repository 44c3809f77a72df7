"""A study knows which others looked at its arms before, whatever order they were asked for in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.study.arm import Arm
from analysis.study.declaration import Declaration, Entry, Look
from sweeps.earlier import earlier_looks, looked
from sweeps.ledger import Ledger
from sweeps.study import PlannedStudy, build
from sweeps.trial import trial
from zslx.runs.json_files import read_json

BASELINE = Arm(name="baseline", intervention="none", role="baseline")


def declared(name: str, seeds: int, *names: str, looks: tuple[int, ...] = (), of: int = 0, **more) -> Declaration:
    """A study of arms whose trials are done; their identities say what they are."""
    roles = {"cosine": "control"}
    arms = [BASELINE, *(Arm(name=n, intervention=n, role=roles.get(n, "arm")) for n in names or ("focal",))]
    trials = tuple(
        Entry(arm=arm.name, size="0.1M", seed=s, identity=f"{arm.name}-{s}", status="finished")
        for arm in arms
        for s in range(seeds)
    )
    created = f"2026-01-{of + 1:02}T00:00:00Z"
    return Declaration(
        **{"name": name, "arms": tuple(arms), "sizes": ("0.1M",), "seeds": tuple(range(seeds)), "trials": trials}
        | {"looks": looks, "created": created}
        | more
    )


def waiting(study: Declaration) -> Declaration:
    """The study before its last trial is done."""
    return replace(study, trials=(*study.trials[:-1], replace(study.trials[-1], status="waiting")))


@pytest.mark.parametrize(
    ("other", "study", "wanted"),
    [
        (declared("a", 10), declared("b", 14), True),
        (declared("a", 14), declared("b", 10), True),
        (declared("a", 10), declared("b", 10), False),
        (declared("a", 10, "pcgrad"), declared("b", 14), False),  # they share the baseline alone
        (declared("a", 10, "cosine"), declared("b", 14, "cosine"), False),  # about which neither asks
        (declared("a", 10, "focal", "pcgrad"), declared("b", 14), True),
        (declared("a", 6, looks=(6, 8, 10)), declared("b", 10, looks=(6, 8, 10)), False),  # one plan
        (declared("a", 6, looks=(6, 8, 10)), declared("b", 10), True),
        (declared("a", 10, looks=(6, 8, 10)), declared("b", 10), True),
        (declared("a", 10), declared("b", 10, looks=(6, 8, 10)), True),
        (declared("a", 6, looks=(6, 8, 10)), declared("b", 20, looks=(10, 15, 20)), True),
        (replace(declared("a", 3), trials=()), declared("b", 10), False),  # not begun
        (replace(declared("a", 3), seeds=(0, 1, 7)), declared("b", 3), True),
        (replace(declared("a", 3), seeds=(2, 1, 0)), declared("b", 3), False),
        (replace(declared("a", 6, looks=(6, 8)), seeds=(5, 4, 3, 2, 1, 0)), declared("b", 8, looks=(6, 8)), True),
    ],
)
def test_what_looked_at_a_study(other, study, wanted):
    assert looked(other, study) is wanted


def test_a_look_counts_until_the_last_trial_is_done_and_is_kept(tmp_path):
    first, second, damaged = declared("first", 10), declared("second", 14, of=1), tmp_path / "damaged"
    for study in (first, second):
        study.write(tmp_path / study.name)
    damaged.mkdir()
    (damaged / "study.json").write_text('{"name": 1}')
    look = Look(name="first", created=first.created, seeds=tuple(range(10)), looks=())
    assert earlier_looks(second, None, tmp_path) == (look,)
    assert earlier_looks(second, second, tmp_path) == (look,), "asked for before it: an earlier version kept no trace"
    assert earlier_looks(first, first, tmp_path) == (), "it was over when the other began"
    [later] = earlier_looks(first, waiting(first), tmp_path)
    assert later.name == "second", "it was interrupted, and looked at by the other before it went on"
    assert earlier_looks(first, replace(first, earlier=(later,)), tmp_path / "none") == (later,), "kept"
    part = declared("part", 6, looks=(6, 8, 10))
    assert earlier_looks(declared("part", 8, looks=(6, 8, 10)), part, tmp_path) == (look, later), "its next look"


@pytest.mark.medium
def test_the_ledger_writes_it_and_no_study_lists_itself(tiny, tmp_path):
    ledger = Ledger(tmp_path)

    def planned(*asked: str, seeds: tuple[int, ...]) -> PlannedStudy:
        overrides = [*tiny.split(), "train.steps=12"]
        return build(asked, "smoke", sizes=["0.1M"], seeds=seeds, overrides=overrides, results=tmp_path)

    def swept(study: PlannedStudy) -> list[tuple[str, tuple[int, ...]]]:
        for _ in range(2):  # the same command twice
            ledger.record(study)
            for t in ledger.split(study.in_order)[1]:
                trial(t.config.to_dict(), ledger.folder(t.key), expected=t.identity)
            ledger.record(study)
        found = Declaration.read(tmp_path / "studies" / study.name)
        assert "earlier" in read_json(tmp_path / "studies" / study.name / "study.json")
        return [(look.name, look.seeds) for look in found.earlier]

    one, two = planned("focal", seeds=(0,)), planned("focal", seeds=(0, 1))
    assert swept(one) == []
    assert swept(two) == [(one.name, (0,))]
    assert swept(one) == [], "nothing of it was trained after the other"
    assert two.name == planned("focal", seeds=(0, 1)).name, "no part of what a study is"
