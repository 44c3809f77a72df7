"""A search asks for the same points every time, learns from what they came to, and its best settings are used.

Optuna is the real one throughout. Where nothing is trained, the values are those of a function of the point.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import socket
import sqlite3
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from analysis.inference.pooled_breaks import load
from analysis.report.figures import Figures
from analysis.report.tuning_blocks import importances
from analysis.report.tuning_blocks import points as table_of
from analysis.report.tuning_blocks import tuning as blocks_of
from analysis.simulation.study import ARMS, write_study
from analysis.study.load import load_study
from sweeps import search_storage
from sweeps.arm_search import BATCH, RATE, ArmSearch, Value, checked, ranges
from sweeps.commands import check_tuning
from sweeps.ledger import Ledger
from sweeps.outcome import Failure
from sweeps.search import Search, value_of
from sweeps.study import build, command
from sweeps.tune_rate import SEEDS
from zslx.commands.interventions import card_of, card_text
from zslx.config.spec import Spec
from zslx.intervention.search_range import search_range

SIZES = ["0.2M", "0.1M"]


def planned(tiny: str, *asked: str, points: int = 6, extra: str = "", results: str | Path = "results") -> Search:
    return Search(asked, "smoke", points, sizes=SIZES, overrides=[*tiny.split(), *extra.split()], results=results)


def bowl(trial, rate: float = 1.5) -> Value:
    """The value of a point: lowest at a rate of `rate` and, where it is searched, a γ of 2."""
    value = math.log(trial.params[RATE] / rate) ** 2 + (trial.params.get("focal.gamma", 2.0) - 2.0) ** 2
    return Value(state="complete", value=value, se=0.01)


def played(search: ArmSearch, value=bowl) -> list[dict]:
    """Every point of a search whose values are those of a function."""
    while not search.done:
        trials = search.ask()
        search.tell(trials, [value(trial) for trial in trials])
    return [trial.params for trial in search.study.trials]


def arm(tiny: str, name: str, extra: str = ""):
    return build((name,), "smoke", sizes=["0.1M"], overrides=[*tiny.split(), *extra.split()]).arms[-1]


def test_the_first_round_is_every_arm_as_it_is_and_other_points_at_the_smallest_size(tiny):
    search = planned(tiny, "focal", "placebo:focal")
    study = search.ask()
    assert [a.name for a in study.arms] == [
        *("baseline", "baseline #1", "baseline #2", "baseline #3"),
        *("focal", "focal #1", "focal #2", "focal #3"),
    ]
    assert study.sizes == ("0.1M",) and study.seeds == SEEDS and len(study.trials) == 2 * BATCH * len(SEEDS)
    plain = build(("focal",), "smoke", sizes=["0.1M"], seeds=SEEDS, overrides=tiny.split())
    own = {t.label: t.identity for t in study.trials}
    assert all(own[t.label] == t.identity for t in plain.trials), "point 0 is the arm as any study has it"
    rates = {t.arm: t.config.optim.lr for t in study.trials}
    assert rates["focal #1"] != rates["focal"] and 0.25 <= rates["focal #1"] / rates["focal"] <= 4


def test_the_same_search_asks_for_the_same_points_and_another_one_does_not(tiny):
    focal = arm(tiny, "focal")
    first, again = played(ArmSearch(focal, 14)), played(ArmSearch(focal, 14))
    assert first == again and len({json.dumps(p) for p in first}) == 14
    other = played(ArmSearch(focal, 14), lambda trial: bowl(trial, rate=0.5))
    assert other[:BATCH] == first[:BATCH] and other != first, "what is asked depends on what was told"


def test_the_search_finds_what_is_better_than_the_arm_as_it_is(tiny):
    search = ArmSearch(arm(tiny, "focal"), 32)
    played(search)
    rate, settings = search.found(search.best())
    assert search.values[search.best().number].value < 0.1 < search.values[0].value
    assert 1 < rate < 2.25 and settings["focal"]["gamma"] == pytest.approx(2, abs=0.4)
    assert set(search.importances()) == {RATE, "focal.gamma"} and sum(search.importances().values()) == pytest.approx(1)


def test_points_that_diverged_or_failed_are_never_best_and_the_sampler_keeps_away_from_the_first(tiny):
    def risky(trial) -> Value:
        return Value(state="diverged", why="seed 1000 diverged") if trial.params[RATE] > 1 else bowl(trial, rate=3.0)

    search = ArmSearch(arm(tiny, "focal"), 32)
    points = played(search, risky)
    assert search.found(search.best())[0] <= 1
    assert sum(p[RATE] > 1 for p in points[20:]) < 6 and len(points) == 32
    failing = ArmSearch(arm(tiny, "focal"), 4)
    played(failing, lambda trial: Value(state="failed", why="it raised"))
    with pytest.raises(ValueError, match=r"no point of focal came to an end: give another optim\.lr"):
        failing.best()


def test_what_set_gives_is_not_searched_nor_what_says_what_is_compared(tiny):
    assert set(ranges(arm(tiny, "focal"))) == {RATE, "focal.gamma"}
    assert set(ranges(arm(tiny, "focal", "focal.gamma=3"))) == {RATE}
    assert set(ranges(arm(tiny, "pcgrad"))) == {RATE, "pcgrad.order", "pcgrad.reduction"}
    assert set(ranges(arm(tiny, "none"))) == {RATE}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"default": 1.0, "low": 0.0, "high": 5.0, "type": "float"}, "0 .. 5"),
        ({"default": 0.1, "low": 0.0, "high": 100.0, "type": "float"}, "0.00625 .. 1.6, log scale"),
        ({"default": 0.99, "low": 0.0, "high": 0.99999, "type": "float"}, "0.84 .. 0.999375, log scale of 1 − it"),
        ({"default": 64, "low": 1, "high": 1_000_000, "type": "int"}, "4 .. 1024, log scale"),
        ({"default": 0.0, "low": 0.0, "high": 1.0, "type": "float"}, "0 .. 1"),
        ({"default": 0, "low": 0, "high": 1_000_000, "type": "int"}, "None"),
        ({"default": "a", "choices": ("a", "b"), "type": "str"}, "a, b"),
        ({"default": "", "type": "str"}, "None"),
        ({"default": True, "type": "bool"}, "False, True"),
    ],
)
def test_ranges_follow_from_what_a_setting_declares(row, text):
    found = search_range({"name": "x", **row})
    assert str(found) == text
    if found and not found.choices:
        ends = [found.setting(x) for x in (found.low, found.start, found.high)]
        assert all(row["low"] <= x <= row["high"] for x in ends) and ends[1] == pytest.approx(row["default"])
        assert all(type(x) is (int if row["type"] == "int" else float) for x in ends)


def test_a_range_is_that_of_the_setting_wherever_it_is_shown(tiny):
    """Optuna draws 1 - decay, under that name; what is said of it is a range of decay itself."""
    search = planned(tiny, "token_agreement", points=2)
    [own] = [s for s in search.arms if s.arm.name == "token_agreement"]
    assert "1 - token_agreement.decay" in own.ranges
    told = "0 .. 0.99375, log scale of 1 − it"
    [line] = [line for line in search.announce() if line.startswith("  token_agreement: ")]
    assert f"; token_agreement.decay {told}" in line and "1 - " not in line
    shown = card_text(card_of(Spec.parse("token_agreement").parts[0]))
    assert f"  token_agreement.decay   {told}" in shown.splitlines()
    played(own, lambda trial: Value(state="complete", value=trial.params["1 - token_agreement.decay"]))
    summary = json.loads(json.dumps(own.summary()))
    assert f"; token_agreement.decay {told}" in table_of(summary).caption
    mattered = importances({"arms": [summary | {"importances": {"1 - token_agreement.decay": 0.9, "rate": 0.1}}]})
    assert mattered.rows[0][1:3] == ("token_agreement.decay", told)


def test_the_comparison_takes_what_was_found_for_an_arm_and_its_placebo_and_the_rate_at_every_size(tiny):
    settings = {"focal": {"focal": {"gamma": 2.5}}, "baseline": {}}
    rates = {"focal": dict.fromkeys(SIZES, 2.0), "baseline": dict.fromkeys(SIZES, 0.5)}
    study = build(
        ("focal",),
        "verdict",
        sizes=SIZES,
        seeds=[0],
        overrides=[*tiny.split(), "focal.gamma=1"],
        rates=rates,
        settings=settings,
        tuning={"points": 6},
    )
    by_arm = {t.arm: t.config for t in study.trials if t.size == "0.2M"}
    for name in ("focal", "placebo:focal", "focal+cosine"):
        assert by_arm[name].settings["focal"]["gamma"] == 2.5
        assert by_arm[name].optim.lr == pytest.approx(4 * by_arm["baseline"].optim.lr, rel=1e-2)
    assert "SEARCH=6" in command(study, "results") and "TUNE_RATE" not in command(study, "results")
    assert "HALVING" not in command(study, "results")
    halved = dataclasses.replace(study, tuning={"points": 6, "halving": {"cut": 0}})
    assert "SEARCH=6 HALVING=1" in command(halved, "results")


def test_settings_that_do_not_go_together_are_a_failed_point(tiny, monkeypatch):
    from zslx.intervention import registry

    load = registry.load_spec

    def refuse(spec, settings):
        if settings.get("focal", {}).get("gamma", 0) > 2:
            raise ValueError("γ above 2 is refused")
        return load(spec, settings)

    monkeypatch.setattr(registry, "load_spec", refuse)
    search = planned(tiny, "focal", points=8)
    study = search.ask()
    refused = {name for name, value in search.refused.items() if value.why == "γ above 2 is refused"}
    assert refused and not refused & {a.name for a in study.arms}


def test_a_baseline_that_failed_is_no_point_that_failed(tiny, tmp_path):
    """The search stops there, and the same command trains it again."""
    search = planned(tiny, "focal", results=tmp_path)
    study = search.ask()
    Ledger(tmp_path).record(study, {t.key: Failure("its process died 3 times") for t in study.trials})
    wanted = r"the baseline as it is did not .* \(seed 1000 failed: its process died 3 times\): mend that"
    with pytest.raises(ValueError, match=wanted):
        search.tell(load_study(tmp_path, study.name))
    assert [t.key for t in planned(tiny, "focal", results=tmp_path).ask().trials] == [t.key for t in study.trials]


@pytest.mark.parametrize("content", ['{"points": {"focal #2": {"step": "12", "why": ""}}}', '{"points": [1]}', "{"])
def test_a_damaged_list_of_failed_points_is_named(tiny, tmp_path, content):
    folder = tmp_path / "studies" / planned(tiny, "focal", results=tmp_path).name
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text(content)
    with pytest.raises(ValueError, match=r"studies/focal-search-smoke-\w+/failed\.json: "):
        planned(tiny, "focal", results=tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"halving": True}, "give SEARCH=N, too"),
        ({"search": 1}, "SEARCH=1"),
        ({"intervention": "focal, rate:untuned"}, "rate:untuned is the baseline before its tuning"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        check_tuning(
            argparse.Namespace(
                **{"intervention": "focal", "seeds": "", "tune_rate": False, "search": None, "halving": False, **given}
            )
        )


@pytest.mark.parametrize("points", [-1, 0, 1, 1001])
def test_a_search_of_no_points_is_refused(points):
    with pytest.raises(ValueError, match=f"SEARCH={points}: allowed are 2 to 1000"):
        checked(points)


def test_the_copy_for_the_dashboard_is_whole_after_every_round_and_may_be_lost(tiny, tmp_path):
    results = tmp_path / "results ?{x}%20'"
    results.mkdir()
    search = ArmSearch(arm(tiny, "focal"), 8)
    named = [("a study: focal", search.study)]
    trials = search.ask()
    search.tell(trials, [Value(state="diverged", why="diverged"), *map(bowl, trials[1:])])
    assert search_storage.keep(results, named) is None
    assert copied(results) == [(t.params, t.state, t.value) for t in search.study.trials]
    played(search)
    for damage in (lambda path: None, lambda path: path.unlink(), lambda path: path.write_bytes(b"no database" * 99)):
        damage(results / search_storage.FILE)
        said = search_storage.keep(results, named)
        assert (said is None) or "was no database" in said
        assert copied(results) == [(t.params, t.state, t.value) for t in search.study.trials]
    other = ArmSearch(arm(tiny, "focal"), 8)
    played(other, lambda trial: bowl(trial, rate=0.3))
    assert search_storage.keep(results, [("a study: focal", other.study)]) is None
    assert copied(results) == [(t.params, t.state, t.value) for t in other.study.trials], (
        "points of another are replaced"
    )


def copied(results) -> list:
    import optuna

    kept = search_storage.storage(results / search_storage.FILE)
    [study] = optuna.get_all_study_summaries(kept)
    return [(t.params, t.state, t.value) for t in optuna.load_study(study_name=study.study_name, storage=kept).trials]


def test_the_report_has_every_point_the_best_one_and_what_mattered(tiny, tmp_path):
    search = ArmSearch(arm(tiny, "focal"), 12)
    trials = search.ask()
    search.tell(trials, [*map(bowl, trials[:3]), Value(state="diverged", why="seed 1000 diverged")])
    played(search)
    found = {
        "by": "optuna",
        "study": "s",
        "size": "0.1M",
        "seeds": SEEDS,
        "points": 12,
        "trials": 36,
        "train_seconds": 9.0,
    }
    tuning = json.loads(json.dumps({**found, "arms": [search.summary()]}))
    figures = Figures(load(write_study(tmp_path, np.random.default_rng(0), arms=ARMS[:1], sizes=("0.1M",), seeds=1)))
    text, best, slices, mattered, points = blocks_of(figures, {"tuning": tuning})
    assert "12 points an arm at 0.1M" in text.text and "36 trials, 9 s" in text.text
    assert best.rows[0][:2] == ("focal", str(search.best().number)) and "focal.gamma=" in best.rows[0][3]
    assert {row[1:3] for row in mattered.rows} == {(RATE, "0.25 .. 4, log scale"), ("focal.gamma", "0 .. 5")}
    assert sum(float(row[3]) for row in mattered.rows) == pytest.approx(1, abs=0.02)
    assert len(points.rows) == 12 and points.rows[0][0] == str(search.best().number)
    assert points.rows[-1] == ("3", *points.rows[-1][1:3], "diverged: seed 1000 diverged")
    assert [panel.title for panel in slices.panels] == ["rate ×", "focal.gamma"]
    for panel, key in zip(slices.panels, (RATE, "focal.gamma"), strict=True):
        asked = [search.described(trial)[key] for n, trial in enumerate(search.study.trials) if n != 3]
        assert [mark.x[0] for mark in panel.marks] == asked, "one mark a point with a value, at what was asked"
        [chosen] = [mark for mark in panel.marks if mark.filled]
        assert chosen.y[0] == min(mark.y[0] for mark in panel.marks) and panel.marks[0].shape == "s"
    assert [panel.axes.log_x for panel in slices.panels] == [True, False] and "Left out: 1 point " in slices.caption
    old = {"study": "s", "seeds": [1000], "trials": 3, "train_seconds": 1.0, "log_loss": {}}
    assert len(list(filter(None, blocks_of(figures, {"tuning": old})))) == 1
    assert blocks_of(figures, {"tuning": None}) == []


@pytest.mark.medium
def test_the_dashboard_shows_the_search_on_this_machine_alone(sweep, tiny, processes):
    search = ArmSearch(arm(tiny, "focal"), 4)
    played(search)
    sweep.results.mkdir()
    assert search_storage.keep(sweep.results, [("a study: focal", search.study)]) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*sweep.zslx, "dashboard", "results", "--port", str(port)]
    running = subprocess.Popen(
        command, cwd=sweep.folder, env=sweep.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        processes.wait_for(lambda: listening(port), running)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=60) as answer:
            [study] = json.load(answer)["study_summaries"]
        assert study["study_name"] == "a study: focal" and listening(port) == {"0100007F"}
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 0
    empty = subprocess.run(
        [*sweep.zslx, "dashboard", "."], cwd=sweep.folder, env=sweep.environment, capture_output=True
    )
    assert empty.returncode == 2 and b"there is no search in this folder yet" in empty.stderr


def listening(port: int) -> set[str]:
    """The hexadecimal addresses at which anything listens on a port."""
    rows = [r.split() for n in ("tcp", "tcp6") for r in Path(f"/proc/net/{n}").read_text().splitlines()[1:]]
    return {r[1].partition(":")[0] for r in rows if r[3] == "0A" and int(r[1].partition(":")[2], 16) == port}


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_comes_to_the_same(sweep, processes, tmp_path):
    """A real search, killed in its second round; the same command trains the rest, and nothing twice."""
    options = ("--steps", "12", "--seeds", "2", "--search", "6", "--wandb", "off")
    running = sweep.start("focal", *options)
    first = 2 * BATCH * len(SEEDS)
    processes.wait_for(lambda: finished(sweep) > first, running, seconds=400)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    before = finished(sweep)
    done = sweep("focal", *options)
    assert done.returncode == 0, done.stderr
    trained = sum(int(line.split()[0]) for line in done.stdout.splitlines() if " trained, " in line)
    assert before + trained <= finished(sweep) == 2 * 6 * len(SEEDS) + len(extra(sweep))
    study = next(s for p in sweep.results.glob("studies/*/study.json") if (s := json.loads(p.read_text()))["tuning"])
    tuning = study["tuning"]
    assert tuning["points"] == 6 and tuning["size"] == "0.1M" and "SEARCH=6" in study["command"]
    assert study["seeds"] == [0, 1] and [len(a["points"]) for a in tuning["arms"]] == [6, 6]
    measured = load_study(sweep.results, tuning["study"])
    for of in tuning["arms"]:
        for point in of["points"]:
            name = of["arm"] if point["point"] == 0 else f"{of['arm']} #{point['point']}"
            assert value_of(measured, name).value == point["value"]
        assert of["best"]["point"] == min(of["points"], key=lambda p: p["value"])["point"]
    with sqlite3.connect(sweep.results / "optuna.db") as database:
        [(count,)] = database.execute("select count(*) from trials where state = 'COMPLETE'").fetchall()
    assert count == 12
    again = sweep("focal", *options)
    assert again.returncode == 0 and again.stdout.count("0 trained") == 3, "two rounds and the comparison"
    page = (sweep.folder / done.stdout.splitlines()[-1]).read_text()
    assert "focal.gamma" in page and "Importance" in page


def finished(sweep) -> int:
    return sum(json.loads(p.read_text())["status"] == "finished" for p in sweep.results.glob("trials/*/manifest.json"))


def extra(sweep) -> set[str]:
    """The trials of the comparison: at its seeds."""
    study = next(s for p in sweep.results.glob("studies/*/study.json") if (s := json.loads(p.read_text()))["tuning"])
    return {trial["identity"] for trial in study["trials"]}
