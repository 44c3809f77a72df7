"""The leaderboard: what follows the protocol stands in it, what departs stands apart with the reason, forgeries too."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.archive.write import claims
from analysis.leaderboard import board, protocol
from analysis.leaderboard.entries import COLUMNS, entry, of_study, update
from analysis.leaderboard.protocol import LAPTOP, arm_departures, departures, scale_of
from analysis.report import markdown
from analysis.simulation.study import ARMS, BASELINE, RATES, SimulatedArm, write_study
from analysis.study.load import Study, load_study
from zslx.commands.cli import main
from zslx.config import presets
from zslx.places import ROOT
from zslx.runs.json_files import read_json, write_json

SEEDS = 8
HOSTILE = "<script>alert(1)</script>|*x*[y](z)"


@pytest.fixture(autouse=True)
def small_protocol(request, monkeypatch) -> None:
    """The protocol of the laptop, with fewer steps and seeds; as it is where a test is about the page in docs."""
    if "docs" in request.node.name:
        return
    verdict = presets.preset("verdict")
    train = dataclasses.replace(verdict.config.train, steps=60)
    small = dataclasses.replace(verdict, sizes=("0.1M",), config=dataclasses.replace(verdict.config, train=train))
    monkeypatch.setitem(presets.PRESETS, "verdict", small)
    monkeypatch.setattr(protocol, "SEEDS", SEEDS)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    light = {"instruments": False, "step_lines": False, "sizes": ("0.1M",), "steps": 60}
    arms = (*ARMS, *RATES)
    return load_study(
        write_study(tmp_path_factory.mktemp("r"), np.random.default_rng(0), arms=arms, seeds=SEEDS, **light)
    )


def test_a_study_of_the_protocol_departs_in_nothing(study):
    assert scale_of(study) is LAPTOP and list(departures(study, LAPTOP)) == []
    pcgrad = next(arm for arm in study.arms if arm.name == "pcgrad")
    assert list(arm_departures(study, pcgrad)) == []


def without(study: Study, name: str) -> Study:
    return dataclasses.replace(study, arms=tuple(arm for arm in study.arms if arm.name != name))


def changed(study: Study, group: str, **settings: Any) -> Study:
    """With other settings in every trial, as they were hashed; None: the setting is not there."""

    def other(found: Any) -> Any:
        return {**found, group: {k: v for k, v in {**found[group], **settings}.items() if v is not None}}

    def of(trial: Any) -> Any:
        parts = trial.manifest["ingredients"]
        manifest = {**trial.manifest, "ingredients": {**parts, "config": other(parts["config"])}}
        return dataclasses.replace(trial, config=other(trial.config), manifest=manifest)

    return dataclasses.replace(study, trials=tuple(map(of, study.trials)))


def said(study: Study, group: str, **settings: Any) -> Study:
    """With other settings in every config.json, which is not what was hashed."""
    trials = [dataclasses.replace(t, config={**t.config, group: {**t.config[group], **settings}}) for t in study.trials]
    return dataclasses.replace(study, trials=tuple(trials))


def of_text(study: Study, *corpora: str | None) -> Study:
    """Whose trials have these texts, one after the other."""
    texts = itertools.cycle(corpora)
    manifests = [
        {**t.manifest, "ingredients": {**t.manifest["ingredients"], "corpus": next(texts)}} for t in study.trials
    ]
    trials = [dataclasses.replace(t, manifest=m) for t, m in zip(study.trials, manifests, strict=True)]
    return dataclasses.replace(study, trials=tuple(trials))


RATES_TUNED = {"study": "t", "seeds": [1000, 1001], "trials": 6, "train_seconds": 60.0}
RATES_TUNED |= {"log_loss": {"baseline": {"0.1M": {"0.707": 1.5, "1": 1.4, "1.41": 1.3, "2": None}}}}
POINTS = [{"point": 0, "rate": 1.0, "value": 0.0}, {"point": 1, "rate": 2**0.5, "value": -0.1}]
SEARCHED = {"study": "t", "seeds": [1000], "trials": 4, "train_seconds": 60.0, "by": "optuna", "size": "0.1M"}
SEARCHED |= {"points": 2, "arms": [{"arm": "baseline", "points": POINTS}]}


def tuned(study: Study, factor: float, tuning: dict[str, Any]) -> Study:
    """With a baseline at this factor on the rate, and what study.json says of its tuning."""
    arms = [dataclasses.replace(a, rates={"0.1M": factor} if a.role == "baseline" else {}) for a in study.arms]
    study = changed(study, "optim", lr=float(f"{0.004 * factor:.3g}"))
    return dataclasses.replace(study, arms=tuple(arms), tuning=tuning)


CHANGES = {
    "no baseline at 2 times its rate": lambda s: without(s, "rate:2"),
    "no cosine": lambda s: without(s, "cosine"),
    "2 seeds; 8, or planned looks": lambda s: dataclasses.replace(s, seeds=(0, 1)),
    "seeds 0, 1, 2, 4, 5, 6, 7, 9; the protocol has 0 to 7": lambda s: dataclasses.replace(
        s, seeds=(0, 1, 2, 4, 5, 6, 7, 9)
    ),
    "seeds 1, 0, 2, 3, 4, 5, 6, 7; the protocol": lambda s: dataclasses.replace(s, seeds=(1, 0, *range(2, 8))),
    "looks after 2, 8 seeds; the protocol has none, or 6, 8": lambda s: dataclasses.replace(s, looks=(2, 8)),
    "looks after 8 seeds; the protocol has none, or 6, 8": lambda s: dataclasses.replace(s, looks=(8,)),
    "data.path texts; the protocol has none": lambda s: said(s, "data", path="texts"),
    "data.tokenizer nothing; the protocol has none": lambda s: dataclasses.replace(
        s, trials=tuple(dataclasses.replace(t, config=no_tokenizer(t.config)) for t in s.trials)
    ),
    "its trials do not have one text": lambda s: of_text(s, "a", "b"),
    "optim.lr 0.1; the protocol has 0.004": lambda s: changed(s, "optim", lr=0.1),
    "optim.clip nothing; the protocol has 1.0": lambda s: changed(s, "optim", clip=None),
    "model.d_model 64; the protocol has 48": lambda s: changed(s, "model", d_model=64),
    "model.hf gpt2; the protocol has nothing": lambda s: changed(s, "model", hf="gpt2"),
    "1 trials are not done": lambda s: dataclasses.replace(
        s, trials=(*s.trials[:-1], dataclasses.replace(s.trials[-1], status="failed"))
    ),
    "its tuning: study is missing": lambda s: tuned(s, 1.0, {"done": True}),
    "its tuning: points must be a whole number, not a list": lambda s: tuned(s, 1.0, SEARCHED | {"points": [4]}),
    "a search of 20 points an arm; allowed are 16": lambda s: tuned(s, 2**0.5, SEARCHED | {"points": 20}),
    "a search of 18 points an arm; allowed are 16": lambda s: tuned(
        s, 2**0.5, SEARCHED | {"arms": [{"arm": "baseline", "points": POINTS * 9}]}
    ),
    "a search with successive halving": lambda s: tuned(s, 2**0.5, SEARCHED | {"halving": {"cut": 3}}),
    "tuned on seed 3, which": lambda s: tuned(s, 2**0.5, RATES_TUNED | {"seeds": [3, 1000]}),
    "baseline at 0.1M has 1 times its rate, and its tuning found 1.41": lambda s: tuned(s, 1.0, RATES_TUNED),
    "baseline at 0.1M has 2 times its rate, and its tuning found 1.41": lambda s: tuned(s, 2.0, SEARCHED),
    "its tuning has no rate of baseline at 0.1M": lambda s: tuned(s, 1.0, RATES_TUNED | {"log_loss": {}}),
    "optim.lr 0.1; the protocol has 0.00566": lambda s: changed(tuned(s, 2**0.5, RATES_TUNED), "optim", lr=0.1),
}


def no_tokenizer(config: Any) -> Any:
    return {**config, "data": {key: value for key, value in config["data"].items() if key != "tokenizer"}}


@pytest.mark.parametrize("told", CHANGES)
def test_each_departure_is_named(told, study):
    [found] = departures(CHANGES[told](study), LAPTOP)
    assert found.startswith(told)


def test_trials_that_do_not_say_their_text_depart(study):
    assert list(departures(of_text(study, None), LAPTOP)) == ["its trials do not have one text"]


def test_what_is_free_or_planned_is_no_departure(study):
    for factor, tuning in ((2**0.5, RATES_TUNED), (2**0.5, SEARCHED)):
        assert not list(departures(tuned(study, factor, tuning), LAPTOP))
    assert not list(departures(changed(study, "train", device="cuda", threads=8, micro_batch=4), LAPTOP))
    assert not list(departures(dataclasses.replace(study, seeds=tuple(range(6)), looks=(6, 8)), LAPTOP))
    assert not list(departures(dataclasses.replace(study, looks=(6, 8)), LAPTOP))
    assert scale_of(dataclasses.replace(study, sizes=("0.4M",))) is None


def test_an_arm_without_its_controls_stands_apart(study):
    pcgrad = next(arm for arm in study.arms if arm.name == "pcgrad")
    assert list(arm_departures(without(study, "placebo:pcgrad"), pcgrad)) == ["its placebo was not run"]
    assert list(arm_departures(without(study, "pcgrad+cosine"), pcgrad)) == ["not run with cosine"]
    lied = dataclasses.replace(pcgrad, has_placebo=False)
    assert list(arm_departures(without(study, "placebo:pcgrad"), lied)) == ["its placebo was not run"]
    plugin = dataclasses.replace(lied, name="mine", intervention="mine")
    assert list(arm_departures(without(study, "placebo:pcgrad"), plugin)) == ["not run with cosine"]


@pytest.mark.medium
def test_a_declared_contrast_must_have_the_controls_of_its_arm_too(tmp_path):
    light = {"instruments": False, "step_lines": False, "sizes": ("0.1M",), "steps": 60, "seeds": 2}
    arms = [arm for arm in ARMS if arm.name in ("baseline", "cosine", "pcgrad+cosine")]
    write_study(tmp_path, np.random.default_rng(0), arms=arms, **light)
    path = tmp_path / "studies/study-0/study.json"
    write_json(path, read_json(path) | {"contrasts": {"pcgrad+cosine": "cosine"}})
    [found] = of_study(load_study(tmp_path), claims(tmp_path))["rows"]
    assert (found["method"], found["against"]) == ("pcgrad+cosine", "cosine")
    assert found["departures"] == ["its placebo was not run"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A real archive of a small study, made by the command; its method is not run with any control."""
    spec = importlib.util.spec_from_file_location("archive_tests", Path(__file__).with_name("test_archive.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = tmp_path_factory.mktemp("a") / "results"
    arms = (BASELINE, SimulatedArm(name="mine", intervention="mine", effect=-0.02))
    write_study(results, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=2, steps=60, instruments=False)
    plugin = results.parent / "plugins" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text("")
    path = results / "studies/study-0/study.json"
    declared = read_json(path)
    for trial in declared["trials"]:
        trial["identity"] = module.named(results / "trials" / trial["identity"], plugin)
    write_json(path, declared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSLX_PLUGINS", str(plugin.parent))
        assert main(["archive", str(results), str(results.parent / "mine.zip")]) == 0
    return results.parent / "mine.zip"


@pytest.mark.medium
def test_an_archive_becomes_an_entry_and_two_pages(archive, tmp_path, capsys):
    folder = tmp_path / "leaderboard"
    folder.mkdir()
    shutil.copy(archive, folder)
    assert main(["leaderboard", str(folder), "--out", str(tmp_path / "docs")]) == 0
    written = (folder / "mine.json").read_bytes()
    found = json.loads(written)
    assert found["archive"]["bytes"] == archive.stat().st_size and len(written) < 10_000
    [row] = found["rows"]
    claimed = read_json_of(archive, "comparison.json")["contrasts"][0]
    assert row["effect"] == claimed["primary"]["estimate"] and row["word"].startswith("exploratory: ")
    page, text = (tmp_path / "docs" / f"leaderboard.{ending}" for ending in ("html", "md"))
    for shown in (page.read_text(), text.read_text()):
        assert "2 seeds; 8, or planned looks" in shown and "its placebo was not run" in shown
        assert found["archive"]["sha256"] in shown
    capsys.readouterr()
    # Without the archive the entry is enough, and an archive that is there is read once.
    found["archive"]["where"] = "https://example.org/mine.zip"
    write_json(folder / "mine.json", found)
    before = text.read_text()
    for _ in range(2):
        assert main(["leaderboard", str(folder), "--out", str(tmp_path / "docs")]) == 0
        assert text.read_text() == before.replace(
            f"{found['archive']['sha256']} | –", f"{found['archive']['sha256']} | https://example.org/mine.zip"
        )
        (folder / "mine.zip").unlink(missing_ok=True)


def read_json_of(archive: Path, name: str) -> dict[str, Any]:
    import zipfile

    with zipfile.ZipFile(archive) as file:
        return json.loads(file.read(name))


@pytest.mark.medium
def test_an_archive_that_does_not_verify_has_no_row_and_is_listed_with_the_reason(archive, tmp_path):
    spec = importlib.util.spec_from_file_location("archive_tests", Path(__file__).with_name("test_archive.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def forge(folder: Path) -> None:
        module.edit(folder / "comparison.json", lambda c: c["contrasts"][0]["primary"].update(estimate=-0.9))

    found = entry(module.changed(archive, tmp_path, forge))
    assert (
        found["rows"] == [] and "it does not verify: numbers: contrasts[0].primary.estimate" in found["departures"][0]
    )
    assert "it does not verify" in markdown.render(board.blocks([found])).replace("\\", "")


def row(method: str, effect: float | None, **more: Any) -> dict[str, Any]:
    texts = dict.fromkeys(COLUMNS, "–")
    more = {"method": method, "against": "", "word": "improves", "effect": effect, "departures": [], **more}
    return {**texts, **more}


def test_rows_stand_in_the_order_of_their_effect_and_names_are_text():
    archive = {"file": "a.zip", "bytes": 1, "sha256": "0" * 64, "where": HOSTILE}
    common = {"format": 2, "archive": archive, "verified": [], "created": "2026-01-01", "study": HOSTILE}
    common |= {"tuned": False}
    rows = [row("worse", 0.1), row("best", -0.2), row("none", None), row(HOSTILE, -0.1)]
    entries = [
        {**common, "scale": "laptop", "departures": [], "rows": rows},
        {**common, "scale": "laptop", "departures": ["3 seeds"], "rows": [row("few", -0.9)]},
    ]
    text = markdown.render(board.blocks(entries))
    standing, apart = text.split("## Outside the protocol")
    assert re.findall(r"^\| (\S+) \| improves", standing, re.MULTILINE)[::3] == ["best", "none"]
    assert "few" in apart and "few" not in standing and "3 seeds" in apart
    assert "<script" not in text.replace("\\<", "") and all(
        len(re.findall(r"(?<!\\)\|", line)) == 11 for line in standing.splitlines() if "improves" in line
    )


def test_a_declared_contrast_stands_below_with_what_it_is_held_against_and_a_tuned_study_says_so():
    archive = {"file": "a.zip", "bytes": 1, "sha256": "0" * 64, "where": ""}
    entry = {"format": 2, "archive": archive, "verified": [], "created": "2026-01-01", "study": "s", "scale": "laptop"}
    rows = [row("mine", -0.1), row("mine+cosine", -0.3, against="cosine"), row("yours", -0.2, against="cosine")]
    rows[2]["departures"] = ["its placebo was not run"]
    text = markdown.render(board.blocks([{**entry, "tuned": True, "departures": [], "rows": rows}]))
    standing, apart = text.split("## Outside the protocol")
    plain, declared = standing.split("| method | against | answer")
    assert "| mine | improves" in plain and "mine+cosine" not in plain
    assert "| mine+cosine | cosine | improves" in declared and "in place of the baseline" in declared
    assert "| yours against cosine | improves" in apart and "its placebo was not run" in apart
    assert text.count("s 2026-01-01; tuning not verified |") == 3


def test_a_damaged_entry_is_an_error_that_names_it(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"format": 2}')
    assert main(["leaderboard", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "a.json: archive is missing" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err


def test_the_page_in_docs_is_that_of_the_entries(tmp_path):
    for path in (ROOT / "leaderboard").glob("*.json"):
        shutil.copy(path, tmp_path)
    text = markdown.render(board.blocks(update(tmp_path)))
    assert (ROOT / "docs" / "leaderboard.md").read_text() == text, "run: make leaderboard"
