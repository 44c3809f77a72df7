"""What a command line asks for: arms, settings, identities, and the command that asks for it again."""

from __future__ import annotations

import shlex
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.grids import text_of, values_of
from sweeps.study import build, command, parse_seeds, plan, seeds_text, split_pair
from zslx.config import presets
from zslx.runs.identity import identity
from zslx.training.train import train


def roles(asked: tuple[str, ...], preset: str = "verdict") -> dict[str, tuple[str, str | None]]:
    return {arm.name: (arm.role, arm.of) for arm in plan(asked, presets.preset(preset), [])}


def test_verdict_has_every_control():
    assert roles(("pcgrad",)) == {
        "baseline": ("baseline", None),
        "rate:0.5": ("control", None),
        "rate:2": ("control", None),
        "cosine": ("control", None),
        "pcgrad": ("arm", None),
        "placebo:pcgrad": ("placebo", "pcgrad"),
        "pcgrad+cosine": ("control", "pcgrad"),
    }


def test_several_interventions_share_baseline_and_controls():
    names = list(roles(("pcgrad", "mgda")))
    assert names[0] == "baseline" and len(names) == len(set(names)) == 4 + 2 * 3


def test_no_arm_that_cannot_be():
    # cosine has no placebo and takes the schedule itself.
    rates = {"rate:0.5": ("control", None), "rate:2": ("control", None)}
    assert roles(("cosine",)) == {"baseline": ("baseline", None), "cosine": ("arm", None)} | rates
    assert roles(("none",)) == {"baseline": ("baseline", None), "cosine": ("control", None)} | rates


def test_what_has_no_placebo_says_so():
    arms = plan(("poly", "pcgrad", "pcgrad+poly"), presets.preset("laptop"), [])
    assert {arm.name: arm.has_placebo for arm in arms if arm.role == "arm"} == {
        "poly": False,
        "pcgrad": True,
        "pcgrad+poly": True,
    }


def test_placebo_asked_for_by_name_is_a_placebo():
    assert roles(("pcgrad", "placebo:pcgrad"), "laptop")["placebo:pcgrad"] == ("placebo", "pcgrad")


def study(tiny: str, *asked: str, extra: str = "", **options):
    overrides = f"{tiny} {extra}".split()
    return build(asked or ("pcgrad",), "smoke", sizes=["0.1M"], overrides=overrides, **options)


def test_method_settings_go_to_the_arms_that_contain_the_method(tiny):
    made = study(tiny, "pcgrad", "placebo:pcgrad", extra="pcgrad.groups=domain optim.lr=1e-3")
    settings = {arm.name: arm.settings for arm in made.arms}
    assert settings["baseline"] == {}
    assert settings["pcgrad"] == settings["placebo:pcgrad"] == {"pcgrad": {"groups": "domain"}}
    assert {trial.config.optim.lr for trial in made.trials} == {1e-3}


def test_a_rate_control_is_the_baseline_at_another_rate(tiny):
    made = study(tiny, "pcgrad", "rate:0.5", extra="optim.lr=1e-3", seeds=(0,))
    rates = {trial.arm: trial.config.optim.lr for trial in made.trials}
    assert rates == {"baseline": 1e-3, "pcgrad": 1e-3, "rate:0.5": 5e-4}
    assert {trial.config.intervention for trial in made.trials if trial.arm == "rate:0.5"} == {"none"}


@pytest.mark.parametrize("spec", ["rate:", "rate:0", "rate:-1", "rate:inf", "rate:x"])
def test_a_rate_that_is_none_is_refused(tiny, spec):
    with pytest.raises(ValueError, match="takes a factor above 0"):
        study(tiny, spec)


def test_tuned_rates_go_to_arm_placebo_and_controls(tiny):
    rates = {"baseline": {"0.1M": 2.0}, "focal": {"0.1M": 0.5}}
    asked = ("focal", "placebo:focal", "pcgrad", "rate:0.5", "rate:untuned")
    made = study(tiny, *asked, extra="optim.lr=1e-3", seeds=(0,), rates=rates)
    found = {trial.arm: trial.config.optim.lr for trial in made.trials}
    assert found == {
        "baseline": 2e-3,
        "focal": 5e-4,
        "placebo:focal": 5e-4,
        "pcgrad": 2e-3,
        "rate:0.5": 1e-3,
        "rate:untuned": 1e-3,
    }


@pytest.mark.parametrize(
    ("asked", "curve"),
    [(("pcgrad", "focal"), "training"), (("ema",), "heldout"), (("pcgrad", "length_warmup"), "heldout")],
)
def test_the_fitted_curve_is_that_of_the_training_where_all_arms_train_on_the_same(tiny, asked, curve):
    made = study(tiny, *asked, seeds=(0,))
    assert made.declaration((), "results", "").to_dict()["protocol"] == {"curve": curve}


def test_identities_are_those_of_the_configurations(tiny):
    made = study(tiny, seeds=(0, 3))
    assert len(made.trials) == 4
    assert [t.identity for t in made.trials] == [identity(t.config) for t in made.trials]
    assert len({t.key for t in made.trials}) == 4


def test_a_given_reference_model_goes_to_the_arms_that_need_one(tiny, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        study(tiny, "rho1", extra=f"reference={tmp_path / 'nothing'}")
    train(study(tiny).trials[0].config, tmp_path / "reference")
    monkeypatch.chdir(tmp_path)
    made = study(tiny, "rho1", "pcgrad", extra="reference=reference")
    given = {trial.arm: trial.config.reference for trial in made.trials}
    assert given == {"baseline": "", "rho1": str(tmp_path / "reference"), "pcgrad": ""}
    plain = {trial.arm: trial.identity for trial in study(tiny, "pcgrad").trials}
    assert {t.arm: t.identity for t in made.trials if t.arm != "rho1"} == plain


def test_a_given_run_of_a_controller_goes_to_its_placebo(tiny, tmp_path):
    asked = ("adaptive_rate", "placebo:adaptive_rate")
    train(study(tiny, "adaptive_rate").trials[-1].config, tmp_path / "donor")
    made = study(tiny, *asked, extra=f"reference={tmp_path / 'donor'}")
    given = {trial.arm: trial.config.reference for trial in made.trials}
    assert given == {"baseline": "", "adaptive_rate": "", "placebo:adaptive_rate": str(tmp_path / "donor")}


def test_name_follows_what_is_compared(tiny):
    name = study(tiny).name
    assert study(tiny).name == name
    assert study(tiny, extra="optim.lr=1e-3").name != name
    assert study(tiny, seeds=(0,)).name != name
    assert study(tiny, extra="pcgrad.groups=sequence").name == name, "a default said aloud is the same study"


def test_other_instruments_are_another_folder_of_the_same_identity(tiny):
    one, two = study(tiny), study(tiny, extra="instruments.decomposition=false")
    assert [t.identity for t in one.trials] == [t.identity for t in two.trials]
    assert not {t.key for t in one.trials} & {t.key for t in two.trials}


def settings_of(made) -> dict[str, dict]:
    return {arm.name: arm.settings for arm in made.arms}


def test_a_setting_with_several_values_makes_an_arm_of_each(tiny):
    made = study(tiny, "pcgrad", "placebo:pcgrad", "pcgrad+cosine", extra="pcgrad.groups=sequence,domain", seeds=(0,))
    domain, sequence = {"pcgrad": {"groups": "domain"}}, {"pcgrad": {"groups": "sequence"}}
    assert settings_of(made) == {
        "baseline": {},
        "pcgrad groups=sequence": sequence,
        "pcgrad groups=domain": domain,
        "placebo:pcgrad groups=sequence": sequence,
        "placebo:pcgrad groups=domain": domain,
        "pcgrad+cosine groups=sequence": sequence,
        "pcgrad+cosine groups=domain": domain,
    }
    of = {arm.name: arm.of for arm in made.arms if arm.role == "placebo"}
    assert of == {f"placebo:pcgrad groups={g}": f"pcgrad groups={g}" for g in ("sequence", "domain")}
    alone = study(tiny, "pcgrad", "placebo:pcgrad", extra="pcgrad.groups=domain", seeds=(0,))
    own = {t.arm: t.identity for t in made.trials}
    assert {t.identity for t in alone.trials} == {
        own[f"{name}"] for name in ("baseline", "pcgrad groups=domain", "placebo:pcgrad groups=domain")
    }, "one trial is the same alone and in a grid"


def test_grids_multiply_and_name_the_settings_that_differ(tiny):
    extra = "focal.gamma=1,2 pcgrad.groups=domain pcgrad.order=random,ascending"
    made = study(tiny, "pcgrad+focal", "focal", extra=extra, seeds=(0,))
    orders = [f"focal.gamma={g} pcgrad.order={order}" for g in ("1", "2") for order in ("random", "ascending")]
    both = [f"pcgrad+focal {order}" for order in orders]
    assert list(settings_of(made)) == ["baseline", *both, "focal gamma=1", "focal gamma=2"]
    assert settings_of(made)["pcgrad+focal focal.gamma=2 pcgrad.order=random"] == {
        "focal": {"gamma": "2"},
        "pcgrad": {"groups": "domain", "order": "random"},
    }
    assert len({t.identity for t in made.trials}) == len(made.trials) == 7


def test_every_control_of_a_verdict_follows_the_grid():
    arms = plan(("pcgrad",), presets.preset("verdict"), [("pcgrad.groups", "sequence,domain")])
    of = {(arm.role, arm.name): arm.of for arm in arms if arm.of}
    assert of == {
        (role, f"{spec} groups={g}"): f"pcgrad groups={g}"
        for g in ("sequence", "domain")
        for role, spec in (("placebo", "placebo:pcgrad"), ("control", "pcgrad+cosine"))
    }
    assert len(arms) == 4 + 2 * 3


def test_the_placebo_of_each_point_repeats_the_actions_of_its_own_arm(tiny):
    asked = ("adaptive_rate", "placebo:adaptive_rate")
    made = study(tiny, *asked, extra="adaptive_rate.target=0.8,0.95", seeds=(0,))
    factors = {
        t.arm: (t.config.settings["adaptive_rate"], t.reference.config.settings["adaptive_rate"])
        for t in made.trials
        if t.reference
    }
    assert factors == {f"placebo:adaptive_rate target={f}": ({"target": f}, {"target": f}) for f in ("0.8", "0.95")}


def test_a_comma_behind_a_backslash_is_one_of_the_value(tiny, plugins):
    (plugins / "mine.py").write_text(WORDS)
    one = study(tiny, "mine", extra=r"mine.words=a\,b", seeds=(0,))
    assert settings_of(one)["mine"] == {"mine": {"words": "a,b"}}
    several = study(tiny, "mine", extra=r"mine.words=,a\,b,c", seeds=(0,))
    assert [arm.name for arm in several.arms] == ["baseline", "mine words=", "mine words=a,b", "mine words=c"]


WORDS = """
from dataclasses import dataclass
from zslx import Intervention, setting

@dataclass(frozen=True)
class Mine(Intervention):
    name = "mine"
    words: str = setting("", "any text")

    def lr_factor(self, run, state):
        return 1.0
"""


@given(st.lists(st.text("ab\\,\n", max_size=5), min_size=1, max_size=4))
def test_values_of_a_grid_are_read_back(values):
    assert values_of(text_of(values)) == values


def test_a_comma_in_a_path_is_its_own(tiny, text, tmp_path):
    shutil.copytree(text, tmp_path / "a,b")
    made = build(("pcgrad",), "smoke", sizes=["0.1M"], seeds=(0,), overrides=["data.path=a,b", "data.vocab_size=400"])
    assert {t.config.data.path for t in made.trials} == {"a,b"} and len(made.trials) == 2


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ("optim.lr=1e-3,2e-3", "rate:0.5.*TUNE_RATE"),
        ("train.threads=1,2", "one value"),
        ("optim.schedule=constant,cosine", "one value"),
        ("pcgrad.groups=domain,domain", "'domain' twice"),
        ("pcgrad.groups=domain,nobody", "pcgrad.groups='nobody'"),
        ("pcgrad.groups=domain,", "pcgrad.groups=''"),
        ("optim.lrr=1", "optim.lr"),
        ("pcgrad.grups=domain", "pcgrad.groups"),
        ("pcgrad.groups=nobody", "pcgrad.groups='nobody'"),
        ("ema.decay=0.9", "ema.decay"),
        ("train.seed=3", "SEEDS="),
        ("intervention=ema", "INTERVENTION="),
        ("model=0.2M", "SIZES="),
        ("nonsense", "key=value"),
        ("optim.lr=nan", "optim.lr"),
        ("reference=runs/a", "none of the arms does"),
    ],
)
def test_a_bad_setting_is_named(tiny, extra, names):
    with pytest.raises(ValueError, match=names.replace(".", r"\.").replace(r"\.*", ".*")):
        study(tiny, extra=extra)


def test_command_gives_the_study_again(tiny):
    made = study(tiny, seeds=(0, 3), extra="pcgrad.groups=domain")
    words = shlex.split(command(made, "a folder"))
    values = dict(word.split("=", 1) for word in words[2:])
    assert words[:2] == ["make", "sweep"] and values["RESULTS"] == "a folder"
    again = build(
        tuple(values["INTERVENTION"].split(",")),
        values["PRESET"],
        sizes=values["SIZES"].split(),
        seeds=parse_seeds(values["SEEDS"]),
        overrides=values["SET"].split(),
    )
    assert again == made


def test_verdict_command_asks_for_all_seeds(tiny):
    words = shlex.split(command(study(tiny, seeds=(0,)), "results", preset="verdict"))
    assert "PRESET=verdict" in words and not [w for w in words if w.startswith(("SEEDS=", "SIZES=", "RESULTS="))]


@pytest.mark.parametrize(
    ("given", "seeds"), [("3", (0, 1, 2)), ("0 4", (0, 4)), ("4,", (4,)), ("", ()), ("7,8", (7, 8))]
)
def test_seeds(given, seeds):
    assert parse_seeds(given) == seeds
    if seeds:
        assert parse_seeds(seeds_text(seeds)) == seeds


@pytest.mark.parametrize("given", ["x", "0", "-1", "1 -2", "1.5"])
def test_bad_seeds_are_refused(given):
    with pytest.raises(ValueError, match="SEEDS="):
        parse_seeds(given)


def test_split_pair_keeps_equal_signs_of_the_value():
    assert split_pair("data.path=a=b") == ("data.path", "a=b")
