"""A study file says what a command line says, and plans the same trials; what is wrong in it is named."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps import commands, study_file
from sweeps.arguments import add_arguments
from zslx.config.presets import PRESETS


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return study_file.with_file(parser.parse_args(words))


def planned(*words: str):
    """The study that a command line asks for."""
    return commands.study_of(arguments(*words))


def write(path: Path, *words: str) -> None:
    """What `--write-study` writes."""
    assert commands.run(arguments(*words, "--write-study", str(path))) == 0


def same(tmp_path: Path, *words: str):
    """Plans a command line and the file written from it; both give the same trials. Returns what the file holds."""
    path = tmp_path / "mine.toml"
    write(path, *words)
    one, two = planned(*words), planned(str(path))
    said = [[(t.label, t.identity, t.key, t.packed) for t in study.in_order] for study in (one, two)]
    assert said[0] == said[1]
    assert (one.name, one.sizes, one.seeds, one.looks) == (two.name, two.sizes, two.seeds, two.looks)
    assert [(a.role, a.of, a.rates) for a in one.arms] == [(a.role, a.of, a.rates) for a in two.arms]
    again = tmp_path / "again.toml"
    write(again, str(path))
    assert tomllib.loads(again.read_text()) == tomllib.loads(path.read_text())
    return tomllib.loads(path.read_text())


def smoke(tiny: str, *words: str, extra: str = "") -> list[str]:
    return [words[0], "--preset", "smoke", "--sizes", "0.1M", "--set", f"{tiny} {extra}", *words[1:]]


def test_a_file_plans_what_its_command_line_plans(tiny, tmp_path):
    extra = "pcgrad.groups=sequence,domain focal.gamma=1e-1 optim.lr=2e-3"
    options = ["--seeds", "8", "--steps", "60", "--until", "decided"]
    found = same(tmp_path, *smoke(tiny, "pcgrad,focal,rate:0.5", *options, extra=extra))
    assert found["arms"] == ["pcgrad", "focal", "rate:0.5"] and found["seeds"] == 8 and found["until"] == "decided"
    assert found["budget"] == {"steps": 60}
    assert found["settings"]["pcgrad"] == {"groups": ["sequence", "domain"]}
    assert found["settings"]["focal"] == {"gamma": 0.1} and found["settings"]["optim"]["lr"] == 2e-3
    assert found["settings"]["data"]["vocab_size"] == 400


def test_a_file_can_say_that_futility_is_a_reason_to_stop(tiny, tmp_path):
    assert same(tmp_path, *smoke(tiny, "focal", "--seeds", "8", "--until", "settled"))["until"] == "settled"


def test_a_file_can_ask_for_a_search(tiny, tmp_path):
    assert same(tmp_path, *smoke(tiny, "focal", "--search", "8"))["tuning"] == {"search": 8}
    path = tmp_path / "mine.toml"
    assert arguments(str(path)).search == 8
    with pytest.raises(ValueError, match=r"--search says it again"):
        arguments(str(path), "--search", "9")
    halved = same(tmp_path, *smoke(tiny, "focal", "--search", "8", "--halving"))
    assert halved["tuning"] == {"search": 8, "halving": True}
    assert arguments(str(path)).halving
    with pytest.raises(ValueError, match=r"--halving says it again"):
        arguments(str(path), "--halving")


VALUES = {
    "focal.gamma": st.floats(0, 5),
    "pcgrad.groups": st.sampled_from(["sequence", "domain", "token_class"]),
    "optim.lr": st.floats(1e-8, 1),
    "optim.warmup": st.integers(0, 50),
    "train.compile": st.booleans().map(lambda b: str(b).lower()),
}


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_and_seeds_are_written_and_read_back(tiny, tmp_path, data):
    keys = data.draw(st.sets(st.sampled_from(sorted(VALUES))))
    items = []
    for key in sorted(keys):
        most = 2 if key.split(".")[0] in ("focal", "pcgrad") else 1
        values = data.draw(st.lists(VALUES[key], min_size=1, max_size=most, unique=True))
        items.append(f"{key}={','.join(map(str, values))}")
    seeds = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    options = ["--seeds", ",".join(map(str, seeds)) + ","]
    kept = " ".join(item for item in tiny.split() if not item.startswith("optim.warmup"))
    same(tmp_path, *smoke(kept, "pcgrad,focal", *options, extra=" ".join(items)))


def test_a_budget_in_tokens_is_that_of_the_baselines_steps(tiny, tmp_path, text):
    path = tmp_path / "a.toml"
    path.write_text(f"""arms = ["ema"]\npreset = "smoke"\n[budget]\ntokens = 1000\n
[settings.data]\npath = "{text}"\nvocab_size = 400\nbatch_size = 4\nseq_len = 16\n""")
    assert {t.steps for t in planned(str(path)).trials} == {1000 // 64}
    path.write_text(path.read_text().replace("1000", "63"))
    with pytest.raises(ValueError, match=r"budget\.tokens=63: a step has 64"):
        planned(str(path))


def test_settings_that_no_command_line_can_say(tmp_path, text):
    folder = tmp_path / "a text, with a comma"
    folder.symlink_to(text)
    path = tmp_path / "a.toml"
    path.write_text(f"""arms = ["ema", "cosine"]\npreset = "smoke"\nseeds = [3]\n[fit]\ncurve = "heldout"
[contrasts]\nema = "cosine"\n[settings.data]\npath = "{folder}"\nvocab_size = 400\n""")
    study = planned(str(path))
    assert {t.config.data.path for t in study.trials} == {str(folder)} and study.seeds == (3,)
    declared = study.declaration((), "results", "")
    assert declared.contrasts == {"ema": "cosine"} and declared.curve == "heldout"
    assert declared.command == f"make sweep STUDY={path}" and declared.verdict_command is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "arms is missing"),
        ("arms = []", "arms is empty"),
        ("arms = 'pcgrad'", "arms must be a list, not 'pcgrad'"),
        ("arms = [1]", r"arms\[0\] must be a text, not 1"),
        ("arms = ['ema']\nsize = ['0.1M']", "unknown key 'size'; did you mean sizes"),
        ("arms = ['ema']\nseeds = 1.5", "seeds must be a whole number or a list, not 1.5"),
        ("arms = ['ema']\nseeds = ['x']", r"seeds\[0\] must be a whole number, not 'x'"),
        ("arms = ['ema']\nseeds = -1", "SEEDS='-1'"),
        ("arms = ['ema']\n[budget]\nflops = 1", "unknown key 'budget.flops'.* budget.steps, budget.tokens"),
        ("arms = ['ema']\n[budget]\nsteps = 4\ntokens = 4", "give one of them"),
        ("arms = ['ema']\n[budget]\nsteps = 0", "budget.steps=0: must be at least 1"),
        ("arms = ['ema']\n[tuning]\nrate = true", "unknown key 'tuning.rate'; did you mean tuning.rates"),
        ("arms = ['ema']\n[tuning]\nrates = 1", "tuning.rates must be true or false, not 1"),
        ("arms = ['ema']\n[tuning]\nsearch = 1", "SEARCH=1: allowed are 2 to 1000"),
        ("arms = ['ema']\n[tuning]\nsearch = 8\nrates = true", "give one of them"),
        ("arms = ['ema']\n[tuning]\nhalving = true", "tuning has halving without search"),
        ("arms = ['ema']\n[settings.optim]\nlr = [1e-3, 2e-3]", "settings.optim.lr=.* a method's setting alone"),
        ("arms = ['ema']\n[settings.ema]\ndecay = []", "settings.ema.decay="),
        ("arms = ['ema']\n[settings.ema]\ndecay = {a = 1}", "settings.ema.decay: .* is no text, number"),
        ("arms = ['ema']\n[settings.optim]\nlrr = 1", "unknown key 'optim.lrr'; did you mean optim.lr"),
        ("arms = ['ema']\n[settings.ema]\ndecai = 0.9", "unknown key 'ema.decai'"),
        ("arms = ['ema']\n[settings.train]\nseed = 1", "decided by SEEDS="),
        ("arms = ['emma']", "unknown intervention 'emma'; did you mean 'ema'"),
        ("arms = ['ema']\npreset = 'laptopp'", "unknown preset 'laptopp'; did you mean laptop"),
        ("arms = ['ema']\n[contrasts]\nema = 'cosine'", "unknown arm 'cosine'"),
        ("arms = ['ema']\n[contrasts]\nbaseline = 'ema'", "the first not the baseline"),
        ("arms = ['ema']\n[fit]\ncurve = 'training'", "ema trains on other text"),
        ("arms = ['ema']\n[fit]\ncurve = 'both'", "allowed are heldout, training"),
        ("arms = ['ema']\nuntil = 'it works'", "until='it works': allowed are decided, settled"),
        ("arms = ['ema']\nuntil = 'decided'\nseeds = 6", "6 seeds are judged once"),
        ("arms = ['ema'\n", "no study file: "),
        ("arms = ['ema']\narms = ['ema']", "no study file: "),
        ("\udcff", "no study file: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, wrong, message):
    path = tmp_path / "wrong.toml"
    data = f"\n[settings.data]\npath = '{text}'\nvocab_size = 400\n"
    path.write_bytes((wrong + data).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        planned(str(path))
    assert "\n" not in str(error.value)


def test_options_cannot_say_it_again(tmp_path):
    with pytest.raises(ValueError, match=r"default\.toml says what is compared, and --seeds, --pack says it again"):
        arguments("default.toml", "--seeds", "2", "--pack", "off")
    with pytest.raises(ValueError, match=r"none\.toml: no such file; with zslx come default\.toml, "):
        arguments("none.toml")


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(p.name for p in study_file.SHIPPED.glob("*.toml")))
def test_every_study_file_that_comes_with_zslx_can_be_planned(name, text, tmp_path):
    path, found = study_file.read(name)
    head = path.read_text().partition("\n\n")[0]
    shipped = found.settings | {"data.path": str(text), "data.vocab_size": 400}
    own = tmp_path / name
    dataclasses.replace(found, settings=shipped).write(own)
    study = planned(str(own))
    if "trials" in head:
        assert f"{len(study.in_order)} trials" in head
    preset = PRESETS[found.preset]
    assert study.sizes == preset.sizes or len(study.sizes) == 1
    assert {t.steps for t in study.trials} == {preset.config.train.steps}


@pytest.mark.medium
def test_the_command_writes_the_file_and_trains_nothing(tiny, tmp_path, environment):
    words = smoke(tiny, "pcgrad", "--seeds", "2", "--results", "results", extra="pcgrad.groups=domain")

    def zslx(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "zslx", "sweep", *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = zslx(*words, "--write-study", "my studies/a.toml")
    assert "plans 4 trials of 2 arms" in out and not list(tmp_path.glob("results/trials/*"))
    plain, filed = (zslx(*w, "--dry-run").splitlines() for w in (words, ["my studies/a.toml", "--results", "results"]))
    trials = [[line for line in out if "/0.1M/" in line] for out in (plain, filed)]
    assert len(trials[0]) == 4 and [t.split()[:4] for t in trials[0]] == [t.split()[:4] for t in trials[1]]
