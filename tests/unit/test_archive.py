"""An archive holds what its study claims, and whoever changes one thing in it is told which."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.archive import container
from analysis.archive.container import MANIFEST, pack, unpack
from analysis.archive.identities import same_setting
from analysis.archive.scrub import without_places
from analysis.archive.verify import Tally, verify
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from analysis.study.load import load_study
from zslx.commands.cli import main
from zslx.places import ROOT
from zslx.runs.digest import digest
from zslx.runs.integrity import checksums
from zslx.runs.json_files import read_json, write_json

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A results folder with a study of a plugin; its identities follow from what was hashed, as those of real runs."""
    results = tmp_path_factory.mktemp("home-of-alice") / "results"
    arms = (BASELINE, SimulatedArm(name="mine", intervention="mine", effect=-0.02))
    light = {"instruments": False, "faults": {("baseline", "0.1M", 2): "diverged", ("mine", "0.1M", 2): "failed"}}
    write_study(results, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=3, steps=60, **light)
    plugin = results.parent / "plugins" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text("raise SystemExit('an archive runs nothing')\n")
    path = results / "studies/study-0/study.json"
    declared = read_json(path)
    for trial in declared["trials"]:
        if trial["status"] == "failed":
            trial["error"] = f"OSError: {results}/trials/x/steps.jsonl: no space left"
            continue
        trial["identity"] = named(results / "trials" / trial["identity"], plugin)
    declared["arms"][1]["settings"] = {"mine": {"power": "2", "sorted": "true"}}
    declared["overrides"] = [f"data.path={results.parent}/texts"]
    declared["command"] = f"make sweep INTERVENTION=mine RESULTS={results}"
    write_json(path, declared)
    return results


def named(folder: Path, plugin: Path) -> str:
    """Give a simulated run the identity that its ingredients have; returns it."""
    config, manifest = read_json(folder / "config.json"), read_json(folder / "manifest.json")
    config["data"]["path"], config["reference"] = str(plugin.parent / "my text"), str(folder)
    hashed = manifest["ingredients"]["config"]
    if config["intervention"] == "mine":
        hashed["settings"] = {"mine": {"power": 2.0, "sorted": True}}
    text = subprocess.run(["sha256sum", plugin], capture_output=True, text=True, check=True).stdout.split()[0]
    sources = {"plugins/mine.py": text} if config["intervention"] == "mine" else {}
    manifest["ingredients"] |= {"sources": sources}
    manifest |= {"identity": digest(manifest["ingredients"]), "records": checksums(folder)}
    write_json(folder / "config.json", config)
    write_json(folder / "manifest.json", manifest)
    folder.rename(folder.with_name(manifest["identity"]))
    return str(manifest["identity"])


@pytest.fixture(scope="module")
def whole(study: Path) -> Path:
    """The archive of that study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSLX_PLUGINS", str(study.parent / "plugins"))
        assert main(["archive", str(study), str(study.parent / "whole.zip")]) == 0
    return study.parent / "whole.zip"


def changed(whole: Path, folder: Path, change: Change) -> Path:
    """The archive with something changed in it, its checksums made again, as a forger would."""
    unpacked, out = folder / "unpacked", folder / "changed.zip"
    manifest, _ = unpack(whole, unpacked)
    change(unpacked)
    pack(unpacked, out, {key: manifest[key] for key in ("zslx", "versions")})
    return out


def edit(path: Path, change: Callable[[dict], object]) -> None:
    found = read_json(path)
    change(found)
    write_json(path, found)


def test_an_archive_verifies_and_says_what_it_checked(whole):
    """In a process of its own, without torch: whoever checks a claim need not be able to train."""
    code = "import sys; from zslx.commands.cli import main; code = main(sys.argv[1:]); "
    code += "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", code, "verify", str(whole)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    told = [line.split(maxsplit=2) for line in lines]
    assert [words[:2] for words in told] == [["ok", name] for name in ("checksums", "trials", "sources", "numbers")]
    assert told[1][2].startswith("of 5 trials") and told[2][2] == "of 1 files of interventions"
    assert int(told[3][2].split()[0]) > 100 and "rounding" not in told[3][2]
    assert last == f"{whole}: verified"


def test_unzipped_it_is_a_results_folder_of_the_same_records(whole, study, tmp_path):
    assert not unpack(whole, tmp_path)[1]
    ours, theirs = load_study(study), load_study(tmp_path)
    assert [(t.label, t.identity, t.status) for t in ours.trials] == [
        (t.label, t.identity, t.status) for t in theirs.trials
    ]
    for mine, other in zip(ours.trials, theirs.trials, strict=True):
        assert [s.tolist() for s in mine.series("heldout_loss")] == [s.tolist() for s in other.series("heldout_loss")]
    assert sum(len(trial.probe_steps) > 20 for trial in theirs.trials) == 5


def test_nothing_of_the_machine_is_in_it(whole, study):
    with zipfile.ZipFile(whole) as file:
        texts = [file.read(name).decode() for name in file.namelist()]
        assert {entry.date_time[0] for entry in file.infolist()} == {1980}
    assert not [text for text in texts if "alice" in text or str(study.parent) in text]
    claimed = json.loads(next(text for text in texts if '"rule"' in text))
    assert any('"data.path=texts"' in text for text in texts)
    assert claimed["command"] == "make sweep INTERVENTION=mine RESULTS=results"
    assert {"OSError: trials/x/steps.jsonl: no space left"} < {failure["error"] for failure in claimed["failures"]}


def test_the_same_study_gives_the_same_bytes(whole, study, monkeypatch, capsys):
    monkeypatch.setenv("ZSLX_PLUGINS", str(study.parent / "plugins"))
    again = study.parent / "again.zip"
    assert main(["archive", str(study / "studies/study-0"), str(again)]) == 0
    assert "note: mine/0.1M/2: failed: " in capsys.readouterr().out
    assert again.read_bytes() == whole.read_bytes()
    assert main(["archive", str(study), str(again)]) == 2 and "exists" in capsys.readouterr().err


def test_what_cannot_be_archived_whole_is_noted_or_refused(study, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "results"
    shutil.copytree(study, copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZSLX_PLUGINS", raising=False)
    baseline = [t["identity"] for t in read_json(copy / "studies/study-0/study.json")["trials"] if t["seed"] == 1]
    (copy / "trials" / baseline[0] / "steps.jsonl").write_text("")
    assert main(["archive", str(copy), "out.zip"]) == 0
    told = capsys.readouterr().out
    assert "baseline/0.1M/1: failed: " in told and "plugins/mine.py" in told and "4 trials" in told
    assert not unpack(Path("out.zip"), tmp_path / "unpacked")[1]
    edit(copy / "trials" / baseline[1] / "manifest.json", lambda found: found["ingredients"].update(numerics=2))
    assert main(["archive", str(copy), "other.zip"]) == 2
    assert "its ingredients give" in capsys.readouterr().err and not Path("other.zip").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def first(folder: Path, name: str) -> Path:
    return sorted(folder.glob(f"trials/*/{name}"))[0]


FORGERIES: dict[str, tuple[Change, str, str]] = {
    "a setting": (
        lambda f: edit(first(f, "config.json"), lambda found: found["optim"].update(lr=9.0)),
        "trials",
        "config.json says optim.lr 9.0, and",
    ),
    "an ingredient": (
        lambda f: edit(first(f, "manifest.json"), lambda found: found["ingredients"].update(torch="1.0")),
        "trials",
        "and its ingredients give",
    ),
    "a seed": (
        lambda f: edit(f / "studies/study-0/study.json", swap_seeds),
        "trials",
        "study.json says seed 1, and seed 0 was hashed",
    ),
    "what an arm is": (
        lambda f: edit(f / "studies/study-0/study.json", lambda s: s["arms"][1]["settings"]["mine"].update(power="3")),
        "trials",
        "study.json says mine.power 3, and 2.0 was hashed",
    ),
    "records": (
        lambda f: first(f, "probes.jsonl").write_bytes(b""),
        "trials",
        "probes.jsonl: 0 bytes, and",
    ),
    "not a number": (
        lambda f: first(f, "probes.jsonl").write_bytes(b'{"step": 0, "heldout_loss": NaN}\n'),
        "trials",
        "it was cut or changed",
    ),
    "a source": (
        lambda f: next(f.glob("sources/*")).write_text("import os\n"),
        "sources",
        "is not the file that was hashed",
    ),
    "a trial left out": (lambda f: shutil.rmtree(first(f, "config.json").parent), "trials", "no such file"),
    "a trial put in": (
        lambda f: shutil.copytree(first(f, "config.json").parent, f / "trials/0123456789abcdef"),
        "trials",
        "trials/0123456789abcdef: is no trial of the study",
    ),
    "a claim that is no JSON": (
        lambda f: (f / "comparison.json").write_text('{"cells": NaN}'),
        "reading",
        "comparison.json: NaN is not JSON",
    ),
    "rates that are none": (
        lambda f: edit(f / "studies/study-0/study.json", lambda found: found["arms"][0].update(rates=3)),
        "reading",
        "study.json: arms[0].rates must be an object, not 3",
    ),
    "arms that are none": (
        lambda f: edit(f / "studies/study-0/study.json", lambda found: found["arms"][0].update(role="x")),
        "reading",
        "needs exactly one arm with the role baseline",
    ),
    "seeds without end": (
        lambda f: edit(f / "studies/study-0/study.json", lambda found: found.update(seeds=list(range(600_000)))),
        "reading",
        "arms × sizes × seeds, allowed are",
    ),
}


def swap_seeds(found: dict) -> None:
    for trial in found["trials"]:
        trial["seed"] = {0: 1, 1: 0}.get(trial["seed"], trial["seed"])


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forgery_is_named(what, whole, tmp_path):
    change, name, told = FORGERIES[what]
    found = next(check for check in verify(changed(whole, tmp_path, change)) if check.name == name)
    assert any(told in line for line in found.faults), found
    assert str(tmp_path) not in str(found)


def test_claims_that_do_not_follow_are_named_and_rounding_is_told_from_them(whole, tmp_path, capsys):
    def claim_more(found: dict) -> None:
        found["gain"] = 2
        found["answers"][0]["verdict"] = "improves"
        found["contrasts"][0]["primary"]["estimate"] -= 0.5
        found["contrasts"][0]["primary"]["low"] += 3e-10

    archive = changed(whole, tmp_path, lambda folder: edit(folder / "comparison.json", claim_more))
    assert main(["verify", str(archive)]) == 1
    ok, trials, sources, numbers, *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok") for line in (ok, trials, sources))
    assert numbers.startswith("differs numbers") and "; 1 differ in rounding, most contrasts[0].primary.low" in numbers
    assert [line.split(": claimed")[0].strip() for line in sorted(lines)] == [
        "answers[0].verdict",
        "contrasts[0].primary.estimate",
        "gain",
    ]
    assert last == f"{archive}: 3 things differ"
    assert main(["verify", str(archive), "--tolerance", "nan"]) == 2


@pytest.mark.parametrize(
    ("claimed", "found", "rounded", "faults"),
    [
        (1.0, 1.0, 0, 0),
        (1.0, 1.0 + 1e-13, 1, 0),
        (1e9, 1e9 + 1e-4, 1, 0),
        (1e-3, 1e-3 + 1e-11, 0, 1),
        (None, 1.0, 0, 1),
        (True, 1, 0, 1),
        ([1, 2], [1], 0, 1),
        ({"a": 1}, {"b": 1}, 0, 2),
        ("x", "y", 0, 1),
        (1e308, -1e308, 0, 1),
    ],
)
def test_values_agree_to_the_tolerance(claimed, found, rounded, faults):
    tally = Tally(1e-12)
    tally.compare(claimed, found, "here")
    assert (tally.rounded, len(tally.faults)) == (rounded, faults)


def test_a_checksum_that_is_wrong_is_named(whole, tmp_path):
    out = tmp_path / "out.zip"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        timing = [name for name in old.namelist() if name.endswith("timing.jsonl")]
        for name in old.namelist():
            if name != timing[1]:
                new.writestr(name, old.read(name) + (b"\n" if name == timing[0] else b""))
        new.writestr("sources/0123456789abcdef-more.py", "")
    found = next(verify(out)).faults
    assert len(found) == 3 and all(any(name in line for line in found) for name in timing[:2])


def zipped(path: Path, *entries: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)


HOSTILE = {
    "../../evil.py": "'../../evil.py' is no file of an archive",
    "/etc/passwd": "'/etc/passwd' is no file of an archive",
    "studies/../study.json": "is no file of an archive",
    "trials/0123456789abcdef/resume/x": "is no file of an archive",
    "\x1b[2J": "is no file of an archive",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_is_refused(name, tmp_path, capsys):
    zipped(tmp_path / "a.zip", (name, b"x"))
    assert main(["verify", str(tmp_path / "a.zip")]) == 2
    told = capsys.readouterr().err
    assert HOSTILE[name] in told and told.count("\n") == 1 and "\x1b" not in told
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_bombs_duplicates_links_and_torn_files_are_refused(whole, tmp_path):
    path = tmp_path / "a.zip"

    def refused(told: str) -> None:
        with pytest.raises(ValueError, match=told) as error:
            list(verify(path))
        assert str(error.value).count(str(path)) == 1 and "\n" not in str(error.value)

    zipped(path, ("comparison.json", bytes(50_000_000)))
    refused("comparison.json unpacks to 50000000 bytes from .*: a bomb")
    zipped(path, ("comparison.json", b"{}"), ("comparison.json", b"{}"))
    refused("comparison.json stands in it 2 times")
    zipped(path, ("comparison.json", b"{}"))
    refused(f"{MANIFEST} is missing")
    zipped(path, (MANIFEST, b'{"format": 99}'))
    refused("format 99, known is 1")
    zipped(path, (MANIFEST, b"[" * 100_000))
    refused("nested too deeply")
    zipped(path, (MANIFEST, b'{"format": 1, "zslx": "0", "versions": {}, "files": {"x": 3}}'))
    refused("files.x must be an object, not 3")
    link = zipfile.ZipInfo("comparison.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    refused("comparison.json is no plain file")
    data = whole.read_bytes()
    for end in (0, 10, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:end])
        refused("no whole zip file")
    path.write_bytes(data[:200] + bytes(100) + data[300:])
    refused("no whole zip file")


@pytest.mark.parametrize("name", ["comparison.json", "trials/0123456789abcdef/steps.jsonl"])
def test_a_file_that_is_too_large_is_neither_read_nor_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MOST_BYTES_OF_FILE", 5_000)
    zipped(tmp_path / "a.zip", (name, bytes(5_001)))
    with pytest.raises(ValueError, match=f"a.zip: {name} has 5001 bytes, allowed are 5000"):
        list(verify(tmp_path / "a.zip"))
    path = tmp_path / "folder" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(5_001))
    with pytest.raises(ValueError, match=f"{name}: 5001 bytes, allowed in an archive are 5000 a file"):
        pack(tmp_path / "folder", tmp_path / "b.zip", {"zslx": "0", "versions": {}})
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "folder"}


@pytest.mark.parametrize(
    ("declared", "hashed", "same"),
    [
        *(("1e-3", 0.001, True), (4, 4, True), ("4", 4, True), ("domain", "domain", True), ("0", False, True)),
        *(("1", False, False), ("true", True, True), ("many", 4, False), (None, 4, False), ("x", None, False)),
    ],
)
def test_a_setting_given_as_a_text_is_the_resolved_one(declared, hashed, same):
    assert same_setting(declared, hashed) is same


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("RESULTS=/mnt/big/alice/results", "RESULTS=results"),
        ("/data/x.jsonl:3: torn", "x.jsonl:3: torn"),
        ("'~/texts/mine.txt' and /opt", "'mine.txt' and opt"),
        ("/home/al/runs/a b/c", "a b/c"),
        ("/home/al", "al"),
        ("/home/alice", "alice"),
        ("https://x.org/a/b, 3 / 4, token/s, a/b", "https://x.org/a/b, 3 / 4, token/s, a/b"),
    ],
)
def test_of_a_path_its_name_is_left(text, left):
    assert without_places({"a": [text, 1]}, ["/home/al", "/home/al/runs", "/"]) == {"a": [left, 1]}


def test_downstream_scores_are_archived(study: Path, tmp_path: Path) -> None:
    results = shutil.copytree(study, tmp_path / "results")
    scored = next(results.glob("trials/*/manifest.json")).parent / "evaluations.jsonl"
    line = {"step": 60, "task": "piqa", "key": "a", "few_shot": None, "limit": 0, "scores": {"piqa": {"acc": 0.5}}}
    scored.write_text(json.dumps(line) + "\n")
    assert main(["archive", str(results), str(tmp_path / "study.zip")]) == 0
    _, faults = unpack(tmp_path / "study.zip", tmp_path / "again")
    again = tmp_path / "again" / scored.relative_to(results)
    assert faults == [] and (not again.parent.exists() or again.read_bytes() == scored.read_bytes())
    assert len(list((tmp_path / "again").glob("trials/*/evaluations.jsonl"))) == 1
