"""Who writes into study.json what the trials of an archive were not trained with is told which trial shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.archive.container import pack
from analysis.archive.verify import verify
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from zslx.runs.digest import digest
from zslx.runs.integrity import checksums
from zslx.runs.json_files import read_json, write_json

Json = dict[str, Any]
SETTINGS = {"power": 2.0, "sorted": True}
ARMS = (
    BASELINE,
    SimulatedArm(name="rate:0.5", role="control"),
    SimulatedArm(name="mine", intervention="mine"),
    SimulatedArm(name="placebo:mine", intervention="placebo:mine", role="placebo", of="mine", has_placebo=False),
    SimulatedArm(name="mine+cosine", intervention="mine+cosine", role="control", of="mine"),
)


class Results:
    """A results folder of one study, whose trials somebody may train otherwise than study.json says."""

    def __init__(self, folder: Path):
        self.folder, self.declaration = folder, folder / "studies/study-0/study.json"

    def edit(self, change: Callable[[Json], object]) -> None:
        """study.json changed."""
        edit(self.declaration, change)

    def of(self, name: str, change: Callable[[Json], object]) -> None:
        """study.json changed in an arm."""
        self.edit(lambda found: change(next(arm for arm in found["arms"] if arm["name"] == name)))

    def run(self, label: str) -> Path:
        """The folder of the trial `arm/size/seed`."""
        found = next(t for t in read_json(self.declaration)["trials"] if label == label_of(t))
        return self.folder / "trials" / found["identity"]

    def train(self, which: str, change: Callable[[Json], object]) -> None:
        """The trials whose labels begin so, as if trained with other ingredients: configuration, identity and folder
        say so, too."""
        found = read_json(self.declaration)
        for trial in found["trials"]:
            if label_of(trial).startswith(which):
                trial["identity"] = self._train(self.folder / "trials" / trial["identity"], change)
        write_json(self.declaration, found)

    def _train(self, folder: Path, change: Callable[[Json], object]) -> str:
        config, manifest = read_json(folder / "config.json"), read_json(folder / "manifest.json")
        parts = manifest["ingredients"]
        change(parts)
        for group in ("model", "data", "optim", "train"):
            config[group] |= parts["config"][group]
        manifest |= {"identity": digest(parts), "records": checksums(folder)}
        write_json(folder / "config.json", config)
        write_json(folder / "manifest.json", manifest)
        folder.rename(folder.with_name(manifest["identity"]))
        return str(manifest["identity"])

    def faults(self, out: Path) -> tuple[str, ...]:
        """What verifying the trials of its archive finds."""
        pack(self.folder, out, {"zslx": "0", "versions": {}})
        return next(check for check in verify(out) if check.name in ("trials", "reading")).faults


def edit(path: Path, change: Callable[[Json], object]) -> None:
    found = read_json(path)
    change(found)
    write_json(path, found)


def label_of(trial: Json) -> str:
    return f"{trial['arm']}/{trial['size']}/{trial['seed']}"


def of_mine(parts: Json) -> None:
    parts["sources"] = {"plugins/mine.py": "0" * 64}
    settings = parts["config"]["settings"]
    parts["config"]["settings"] = {name: dict(SETTINGS) if "mine" in name else {"final": 0.1} for name in settings}


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    light = {"instruments": False, "faults": {("mine", "0.1M", 1): "diverged"}}
    write_study(folder, np.random.default_rng(0), arms=ARMS, sizes=("0.1M", "0.2M"), seeds=2, steps=60, **light)
    results = Results(folder)
    for name in ("mine", "placebo:mine", "mine+cosine"):
        results.of(name, lambda arm: arm.update(settings={"mine": {"power": "2"}}))
        results.train(name + "/", of_mine)
    results.train("baseline/", lambda parts: None)
    results.train("rate:0.5/", lambda parts: None)
    return folder


@pytest.fixture
def results(honest, tmp_path) -> Results:
    return Results(shutil.copytree(honest, tmp_path / "results"))


def lr(factor: float) -> Callable[[Json], object]:
    return lambda parts: parts["config"]["optim"].update(lr=float(f"{parts['config']['optim']['lr'] * factor:.3g}"))


def setting(group: str, **values: Any) -> Callable[[Json], object]:
    return lambda parts: parts["config"][group].update(values)


def tuned(results: Results) -> None:
    mine = dict.fromkeys(("mine", "placebo:mine", "mine+cosine"), 2.0)
    for name, factor in {"baseline": 2**0.5, "rate:0.5": 0.5 * 2**0.5, **mine}.items():
        results.of(name, lambda arm, f=factor: arm.update(rates={"0.1M": f, "0.2M": f}))
        results.train(f"{name}/", lr(factor / 0.5 if name == "rate:0.5" else factor))


def one_trial_more(found: Json) -> None:
    found["trials"].append(found["trials"][0])


def untuned(results: Results) -> None:
    tuned(results)
    results.of("rate:0.5", lambda arm: arm.update(name="rate:untuned", rates={}))
    results.edit(lambda s: [t.update(arm="rate:untuned") for t in s["trials"] if t["arm"] == "rate:0.5"])
    results.train("rate:untuned/", lr(2**0.5))


def other_model(results: Results) -> None:
    results.edit(lambda s: s.update(overrides=["model.mlp_ratio=2.0"]))
    results.train("", setting("model", mlp_ratio=2.0))


def of_manifest(label: str, **values: Any) -> Callable[[Results], None]:
    return lambda r: edit(r.run(label) / "manifest.json", lambda m: m.update(values))


HONEST: dict[str, Callable[[Results], None]] = {
    "as it is": lambda r: None,
    "tuned": tuned,
    "the baseline before its tuning": untuned,
    "another model": other_model,
    "a setting that came later": lambda r: r.train("", setting("train", micro_batch=4)),
    "parameters as they are counted": of_manifest(
        "mine/0.1M/0", parameters={"non_embedding": 25_344, "embedding": 98_304, "total": 123_648}
    ),
    "trials with reference runs": lambda r: r.train("placebo:mine/0.1M/1", lambda p: p["config"].update(reference="a")),
}


@pytest.mark.parametrize("what", HONEST)
def test_what_a_sweep_may_do_is_no_forgery(what, results, tmp_path):
    HONEST[what](results)
    assert results.faults(tmp_path / "a.zip") == ()


def relabelled(results: Results, label: str, status: str, **totals: Any) -> None:
    """A trial that ended otherwise than its records say."""
    edit(results.run(label) / "manifest.json", lambda m: m.update(status=status, totals=m["totals"] | totals))
    results.edit(lambda s: [t.update(status=status) for t in s["trials"] if label_of(t) == label])


def renamed(results: Results, old: str, new: str) -> None:
    results.of(old, lambda arm: arm.update(name=new))
    results.edit(lambda s: [t.update(arm=new) for t in s["trials"] if t["arm"] == old])


def of_another_size(results: Results) -> None:
    results.edit(lambda s: s.update(sizes=["0.2M"], trials=[t for t in s["trials"] if t["size"] == "0.1M"]))
    results.edit(lambda s: [t.update(size="0.2M") for t in s["trials"]])


def totals(label: str, **values: Any) -> Callable[[Results], None]:
    return lambda r: edit(r.run(label) / "manifest.json", lambda m: m["totals"].update(values))


FORGERIES: dict[str, tuple[Callable[[Results], None], str]] = {
    "a poor rate as half the rate": (
        lambda r: r.train("rate:0.5/", lr(0.02)),
        "rate:0.5/0.1M: its rate should be 0.5 times that of baseline, 0.004, and 4e-05 was hashed",
    ),
    "a rate that the arm does not say": (lambda r: r.train("mine/", lr(2)), "mine/0.1M: its rate should be 1 times"),
    "a factor that was not trained": (
        lambda r: r.of("mine", lambda arm: arm.update(rates={"0.1M": 2.0})),
        "mine/0.1M: its rate should be 2 times that of baseline",
    ),
    "a factor that is not the name's": (
        lambda r: r.of("rate:0.5", lambda arm: arm.update(rates={"0.1M": 0.25})),
        "rate:0.5/0.1M: study.json says 0.25 times the rate, and its name 0.5",
    ),
    "a factor before any tuning": (
        lambda r: [renamed(r, "rate:0.5", "rate:untuned"), r.of("rate:untuned", lambda a: a.update(rates={"0.1M": 9}))],
        "rate:untuned: has a factor on the rate",
    ),
    "a small model as a larger one": (
        of_another_size,
        "mine/0.2M: the size 0.2M has model.d_model 64, and 48 was hashed",
    ),
    "another architecture": (
        lambda r: r.train("", setting("model", norm="layernorm")),
        "baseline/0.1M: the size 0.1M has model.norm rmsnorm, and layernorm was hashed",
    ),
    "an optimizer of its own": (
        lambda r: r.train("mine/", setting("optim", weight_decay=0.0)),
        "mine/0.1M: differs from baseline in what was hashed: optim.weight_decay 0.0 and 0.1",
    ),
    "text of its own": (
        lambda r: r.train("mine/", setting("data", seq_len=64)),
        "mine/0.1M: differs from baseline in what was hashed: data.seq_len 64 and 32",
    ),
    "one seed of another kind": (
        lambda r: r.train("baseline/0.2M/1", setting("optim", clip=0.1)),
        "baseline/0.2M/1: differs from baseline/0.2M/0 in what was hashed: config.optim.clip 1.0 and 0.1",
    ),
    "one seed of other sources": (
        lambda r: r.train("mine/0.2M/1", lambda p: p["sources"].update({"plugins/mine.py": "1" * 64})),
        "mine/0.2M/1: differs from mine/0.2M/0 in what was hashed: sources.plugins/mine.py",
    ),
    "a placebo of other settings": (
        lambda r: r.train("placebo:mine/", lambda p: p["config"]["settings"]["placebo:mine"].update(sorted=False)),
        "placebo:mine/0.1M: differs from mine in what was hashed: settings.mine.sorted True and False",
    ),
    "a placebo of other sources": (
        lambda r: r.train("placebo:mine/", lambda p: p["sources"].update({"plugins/mine.py": "1" * 64})),
        "placebo:mine/0.1M: differs from mine in what was hashed: sources.plugins/mine.py 000",
    ),
    "a placebo of other declared settings": (
        lambda r: [
            r.of("placebo:mine", lambda arm: arm.update(settings={"mine": {"power": "3"}})),
            r.train("placebo:mine/", lambda p: p["config"]["settings"]["placebo:mine"].update(power=3.0)),
        ],
        "placebo:mine/0.1M: differs from mine in what was hashed: settings.mine.power 2.0 and 3.0",
    ),
    "a placebo at a poor rate": (
        lambda r: [
            r.of("placebo:mine", lambda arm: arm.update(rates={"0.1M": 0.01, "0.2M": 0.01})),
            r.train("placebo:mine/", lr(0.01)),
        ],
        "placebo:mine/0.1M: differs from mine in what was hashed: rate 0.004 and 4e-05",
    ),
    "a control of other settings": (
        lambda r: r.train("mine+cosine/", lambda p: p["config"]["settings"]["mine"].update(sorted=False)),
        "mine+cosine/0.1M: differs from mine in settings that it does not declare: mine.sorted True and False",
    ),
    "settings of its own at a size": (
        lambda r: r.train("mine/0.2M", lambda p: p["config"]["settings"]["mine"].update(sorted=False)),
        "mine/0.2M: differs from mine in settings that it does not declare: mine.sorted True and False",
    ),
    "a placebo that is the method": (
        lambda r: r.of("mine+cosine", lambda arm: arm.update(role="placebo")),
        "mine+cosine: mine+cosine is no placebo of mine",
    ),
    "a placebo of nothing": (lambda r: r.of("placebo:mine", lambda a: a.update(of=None)), "a placebo of no arm"),
    "a placebo of an arm that is not there": (
        lambda r: r.of("placebo:mine", lambda arm: arm.update(of="yours")),
        "placebo:mine: belongs to yours, which is no arm",
    ),
    "a control that does not add to its arm": (
        lambda r: r.of("placebo:mine", lambda arm: arm.update(role="control")),
        "placebo:mine: placebo:mine does not add to mine",
    ),
    "another name": (
        lambda r: renamed(r, "mine", "yours"),
        "yours: a trial of mine with the role arm has another name",
    ),
    "a method as a rate": (
        lambda r: renamed(r, "mine", "rate:2"),
        "rate:2: a trial of mine with the role arm has another name",
    ),
    "another baseline": (
        lambda r: [r.of("baseline", lambda a: a.update(role="arm")), r.of("mine", lambda a: a.update(role="baseline"))],
        "mine: a trial of mine with the role baseline has another name",
    ),
    "a trial left out": (
        lambda r: [shutil.rmtree(r.run("mine/0.1M/0")), r.edit(lambda s: s["trials"].remove(find(s, "mine/0.1M/0")))],
        "mine/0.1M/0: stands 0 times in study.json",
    ),
    "a trial twice": (lambda r: r.edit(one_trial_more), "baseline/0.1M/0: stands 2 times in study.json"),
    "a size twice": (
        lambda r: r.edit(lambda s: s["sizes"].append("0.1M")),
        "mine/0.1M/1: stands 0 times in study.json",
    ),
    "a trial of no arm": (
        lambda r: r.edit(lambda s: s["trials"].append({**s["trials"][0], "arm": "yours"})),
        "yours/0.1M/0: is none of its arms, sizes and seeds",
    ),
    "a good end as a bad one": (
        lambda r: relabelled(r, "baseline/0.1M/0", "diverged"),
        "baseline/0.1M/0: its manifest says diverged, and the last line of steps.jsonl does not say that it diverged",
    ),
    "a bad end as a good one": (
        lambda r: relabelled(r, "mine/0.1M/1", "finished", steps=60),
        "mine/0.1M/1: its manifest says finished, and the last line of steps.jsonl says that it diverged",
    ),
    "a cheap step": (
        totals("mine/0.1M/0", median_step_seconds=1e-3),
        "its manifest says median_step_seconds 0.001, and",
    ),
    "a cheap run": (totals("mine/0.1M/0", train_seconds=0.1), "its manifest says train_seconds 0.1, and the lines"),
    "a cheap run without a total": (totals("mine/0.1M/0", train_seconds=None), "its manifest says train_seconds None"),
    "a small model": (
        of_manifest("mine/0.1M/0", parameters={"non_embedding": 1, "embedding": 1, "total": 2}),
        "mine/0.1M/0: its manifest says parameters {'non_embedding': 1, 'embedding': 1, 'total': 2}, and its settings",
    ),
    "a setting that is not said": (
        lambda r: edit(r.run("mine/0.1M/0") / "config.json", lambda c: c["optim"].pop("clip")),
        "mine/0.1M/0: config.json says optim.clip nothing, and 1.0 was hashed",
    ),
    "a setting that was not hashed": (
        lambda r: r.train("", lambda parts: parts["config"]["optim"].pop("clip")),
        "mine/0.1M/0: config.json says optim.clip 1.0, and nothing was hashed",
    ),
    "a vocabulary that was not hashed": (
        lambda r: edit(r.run("mine/0.1M/0") / "config.json", lambda c: c["data"].update(vocab_size=4096)),
        "mine/0.1M/0: config.json says data.vocab_size 4096, and 2048 was hashed",
    ),
    "a method that was not hashed": (
        lambda r: r.train("mine/", lambda parts: parts["config"].update(settings={})),
        "mine/0.1M/0: mine was hashed, with settings of nothing",
    ),
}


def find(found: Json, label: str) -> Json:
    return next(trial for trial in found["trials"] if label_of(trial) == label)


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forgery_is_named(what, results, tmp_path):
    change, told = FORGERIES[what]
    change(results)
    faults = results.faults(tmp_path / "a.zip")
    assert any(told in fault for fault in faults), faults
    assert str(tmp_path) not in str(faults)
