"""`--until decided`: the seeds of one look after the other, and no more where the answer is clear."""

from __future__ import annotations

import pytest

from sweeps.study import build

pytestmark = pytest.mark.medium

FROZEN = """
from dataclasses import dataclass
from zslx import Intervention

@dataclass(frozen=True)
class Frozen(Intervention):
    name = "frozen"

    def lr_factor(self, run, state):
        return 0.0
"""


def test_a_part_of_a_study_is_its_first_seeds(tiny):
    asked = ("adaptive_rate", "placebo:adaptive_rate")
    whole = build(asked, "smoke", sizes=["0.1M"], seeds=range(8), overrides=tiny.split(), until="decided")
    assert whole.looks == (6, 8) and len(whole.in_order) == 3 * 8 + 1
    part = whole.up_to(6)
    assert {t.seed for t in part.trials} == set(range(6)) and len(part.trials) == 3 * 6
    assert len(part.in_order) == 3 * 6 + 1, "seed 6 of the controller is the reference of seed 5 of its placebo"
    declared = part.declaration((), "results", "")
    assert declared.seeds == tuple(range(6)) and declared.looks == (6, 8) and not declared.exploratory
    assert part.name == whole.name != build(asked, "smoke", sizes=["0.1M"], seeds=range(8), overrides=tiny.split()).name
    assert "UNTIL=decided" in declared.command and "SEEDS=8" in declared.command
    assert not declared.futility
    other = build(asked, "smoke", sizes=["0.1M"], seeds=range(8), overrides=tiny.split(), until="settled")
    assert other.name != whole.name and [t.key for t in other.trials] == [t.key for t in whole.trials]
    declared = other.declaration((), "results", "")
    assert declared.futility and "UNTIL=settled" in declared.command


@pytest.mark.slow
def test_a_sweep_stops_for_futility_where_it_may_and_goes_on_where_it_may_not(sweep, plugins):
    (plugins / "idle.py").write_text(FROZEN.replace('"frozen"', '"idle"').replace("return 0.0", "return 1.0"))
    options = ("--seeds", "8", "--steps", "30")
    done = sweep("idle", *options, "--until", "settled")
    assert done.returncode == 0, done.stderr
    assert "look 1 of 2, after 6 of 8 seeds: idle: no effect found, futile" in done.stdout
    assert "12 trained" in done.stdout and "look 2" not in done.stdout
    assert "stopped early, for futility (idle: " in done.stdout
    more = sweep("idle", *options, "--until", "decided")
    assert "look 2 of 2, after 8 of 8 seeds: idle: not decided" in more.stdout
    assert "4 trained, 12 finished before" in more.stdout, "the seeds that were left out, and no trial twice"


@pytest.mark.slow
def test_a_sweep_stops_at_the_first_look_with_an_answer_and_says_so(sweep, plugins):
    (plugins / "frozen.py").write_text(FROZEN)
    options = ("--seeds", "8", "--steps", "30", "--until", "decided")
    done = sweep("frozen", *options)
    assert done.returncode == 0, done.stderr
    assert "look 1 of 2, after 6 of 8 seeds: frozen: hurts" in done.stdout
    assert "12 trained" in done.stdout and "look 2" not in done.stdout
    study = sweep.study()
    assert study["seeds"] == list(range(6)) and study["looks"] == [6, 8] and len(study["trials"]) == 12
    assert "→ frozen: hurts" in done.stdout
    assert "Look 1 of 2, after 6 of 8 seeds: stopped early, decided; its intervals are of 98.3 %" in done.stdout
    again = sweep("frozen", *options)
    assert "0 trained, 12 finished before" in again.stdout and sweep.study() == study
