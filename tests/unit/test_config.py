"""Settings: overrides are read as their types, unknown keys and bad values refused by name."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zslx.commands.cli import main
from zslx.config.groups import GROUPS, OptimConfig
from zslx.config.presets import PRESETS, preset
from zslx.config.run_config import Config, known_keys, parse_overrides
from zslx.config.sizes import LAPTOP_SIZES, PAPER_SIZES, SIZES


def test_overrides():
    items = ["optim.lr=1e-3", "train.steps=2e3", "model.tied=false", "data.path=a=b", "run.resume_seconds=0"]
    config = parse_overrides(Config(), items)
    assert config.optim.lr == 1e-3 and config.train.steps == 2000 and config.model.tied is False
    assert config.data.path == "a=b" and config.run.resume_seconds == 0.0
    assert Config() == parse_overrides(Config(), [])


@pytest.mark.parametrize("key", ["train.seed", "model", "intervention", "none.x"])
def test_a_key_given_twice_is_refused_with_both_values(key: str):
    values = {"model": ("0.1M", "0.2M"), "train.seed": ("1", "2")}.get(key, ("none", "x"))
    with pytest.raises(ValueError, match=f"^{re.escape(key)} is given twice, as '{values[0]}' and as '{values[1]}'"):
        parse_overrides(Config(), [f"{key}={value}" for value in values])


def test_keys_that_must_fit_each_other_come_in_any_order():
    for items in (["model.d_model=50", "model.n_heads=5"], ["model.n_heads=5", "model.d_model=50"]):
        assert parse_overrides(Config(), items).model.d_model == 50


def test_settings_of_methods_come_in_any_order():
    for items in (["pcgrad.groups=domain", "intervention=pcgrad+focal"], ["intervention=placebo:pcgrad"]):
        config = parse_overrides(Config(), [*items, "pcgrad.num_groups=8"])
        assert config.settings["pcgrad"]["num_groups"] == "8"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("optim.lr", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("optim.lrr=1", r"unknown key 'optim\.lrr'; did you mean optim\.lr"),
        ("lr=1", "unknown key 'lr'"),
        ("pcgrad.groups=domain", r"unknown key 'pcgrad\.groups': settings of 'pcgrad' need intervention=pcgrad"),
        ("optm.lr=1", r"unknown key 'optm\.lr'; did you mean optim\.lr"),
        ("optim.lr=fast", r"optim\.lr='fast': must be a finite number"),
        ("optim.lr=nan", r"optim\.lr='nan': must be a finite number"),
        ("optim.lr=inf", r"optim\.lr='inf': must be a finite number"),
        ("optim.lr=-1", r"optim\.lr=-1\.0: must be a number from 0\.0 to 100\.0"),
        ("train.steps=0", r"train\.steps=0: must be a number at least 1"),
        ("train.steps=1.5", r"train\.steps='1\.5': must be a whole number"),
        ("train.steps=", r"train\.steps='': must be a whole number"),
        ("train.seed=1e400", r"train\.seed='1e400': must be a whole number"),
        ("model.tied=perhaps", r"model\.tied='perhaps': must be true or false"),
        ("train.dtype=float16", r"train\.dtype='float16': allowed are float32, bfloat16, float64"),
        ("model=3M", "unknown model size '3M'; allowed are 0.08M, 0.1M, 0.2M"),
        ("model.tied.deep=1", r"unknown key 'model\.tied\.deep'"),
    ],
)
def test_bad_overrides(item: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_overrides(Config(), [item])


@given(st.text(max_size=30))
def test_any_text_is_taken_or_refused(item: str):
    try:
        config = parse_overrides(Config(), [item])
    except ValueError as error:
        assert str(error)
    else:
        assert "=" in item and isinstance(config, Config)


@given(st.sampled_from([k for k in known_keys() if "." in k]), st.text(max_size=12))
def test_any_value_is_taken_or_refused_by_its_key(key: str, value: str):
    try:
        parse_overrides(Config(), [f"{key}={value}"])
    except ValueError as error:
        assert key in str(error) or key.partition(".")[0] in str(error)


def test_a_configuration_survives_json():
    config = parse_overrides(
        Config(), ["intervention=pcgrad", "pcgrad.groups=domain", "model=0.4M", "optim.lr=1e-3", "reference=runs/a"]
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="unknown key"):
        Config.from_dict(config.to_dict() | {"surprise": 1})
    with pytest.raises(ValueError, match=r"optim\.lr='x'"):
        Config.from_dict(config.to_dict() | {"optim": {"lr": "x"}})


def test_every_key_has_a_meaning_and_a_valid_default():
    for group in GROUPS.values():
        for f in dataclasses.fields(group):
            assert f.metadata["help"], f"{group.label}.{f.name}"
        group()


def test_presets_give_configurations_at_every_size():
    for name in PRESETS:
        for size in {**LAPTOP_SIZES, **PAPER_SIZES}:
            config = preset(name).for_size(size)
            assert (config.model.d_model, config.model.n_layers, config.model.n_heads) == (LAPTOP_SIZES | PAPER_SIZES)[
                size
            ]
    with pytest.raises(ValueError, match="unknown preset 'smok'; did you mean smoke"):
        preset("smok")


def test_the_papers_preset_has_its_settings():
    """The authors' configs/main-results: 512 × 1,024 tokens, 2^18 steps, constant after 2,000 steps from a tenth."""
    rates = [1.26e-3, 9.71e-4, 8.01e-4, 6.81e-4, 5.67e-4, 4.87e-4]
    chosen = preset("paper")
    assert chosen.sizes == ("14M", "37M", "78M", "144M", "285M", "472M")
    for size, rate in zip(chosen.sizes, rates, strict=True):
        config = chosen.for_size(size)
        assert config.optim == OptimConfig(
            lr=rate, beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, clip=1.0, warmup=2000, warmup_start=0.1,
            schedule="constant",
        )  # fmt: skip
        assert (config.data.batch_size, config.data.seq_len, config.train.steps) == (512, 1024, 2**18)
        assert (config.data.vocab_size, config.model.vocab_size) == (50280, 50304)
        assert config.train.dtype == "bfloat16" and config.model.init == "mitchell"
        if size in ("14M", "37M", "78M", "144M"):
            assert chosen.for_size(f"nanogpt-{size}").optim == config.optim


def test_presets_are_listed_with_what_they_cost(capsys):
    assert main(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    by_name = {p["name"]: p for p in listed["presets"]}
    assert by_name.keys() == PRESETS.keys()
    paper = {cost["size"]: cost for cost in by_name["paper"]["costs"]}
    assert paper["144M"]["parameters"] == 143_785_984 and paper["144M"]["tokens"] == 2**37
    # 6 a weight of the layers and of the unembedding, and causal attention over 1,024 tokens: 6 · 16 · 1,024 · 1,024.
    assert paper["144M"]["flops"] == 2**37 * (6 * 143_785_984 + 6 * 16 * 1024 * 1024)
    assert paper["14M"]["h100_hours"] == pytest.approx(2**37 / 2_658_000 / 3600) and not paper["285M"]["h100_hours"]
    sizes = {size["name"]: size["parameters"] for size in listed["sizes"]}
    assert sizes.keys() == SIZES.keys()
    assert [round(sizes[f"nanogpt-{n}"] / 1e6, 1) for n in ("14M", "37M", "78M", "144M")] == [16.3, 51.5, 124.4, 254.0]
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert "472,121,344 parameters" in printed and "not measured" in printed and "99.2 H100 hours" in printed


def test_a_group_given_as_a_mapping_is_read_as_the_group():
    config = Config(train={"steps": "50"}, optim={"lr": 1e-3})
    assert config.train.steps == 50 and config.optim.lr == 1e-3 and config.train.device == "auto"
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"step": 5}}, "unknown key 'train.step'; did you mean train.steps"),
        ({"train": {"steps": "many"}}, "train.steps='many': must be a whole number"),
        ({"train": 5}, "train=5: allowed are a TrainConfig and a mapping of its settings"),
    ],
)
def test_a_group_that_cannot_be_read_is_refused_at_once(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)
