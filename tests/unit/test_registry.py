"""Names to interventions: where they are found, what is refused, what listing may not do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from zslx import registry
from zslx.registry import discover, load_intervention, load_spec, resolve

PLUGIN = '''
from dataclasses import dataclass
from zslx.intervention import Intervention, setting

@dataclass(frozen=True)
class Mine(Intervention):
    """Weighs tokens by mine."""
    name = "{name}"
    power: float = setting(1.0, "strength", low=0.0, high=2.0)
    rounds: int = setting(3, "how often", low=1)
    mode: str = setting("a", "which", choices=("a", "b"))
    flag: bool = setting(False, "whether")

    def token_weights(self, view, state):
        return view.losses ** self.power
'''


def write(folder: Path, name: str = "mine", file: str = "") -> Path:
    path = folder / f"{file or name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PLUGIN.format(name=name))
    return path


def test_a_plugin_in_the_working_directory_is_found(plugins: Path):
    path = write(plugins)
    assert [s.path for s in discover()["mine"]] == [path]
    assert load_intervention("mine", power=2).power == 2.0
    write(plugins, "test_other")
    assert "test_other" not in discover()  # tests lie beside their plugins


def test_folders_of_the_environment_take_the_place_of_plugins(plugins: Path, tmp_path, monkeypatch):
    write(plugins, "here")
    write(tmp_path / "x" / "deeper", "there")
    monkeypatch.setenv("ZSLX_PLUGINS", f"{tmp_path / 'x'}:{tmp_path / 'missing'}")
    assert "there" in discover() and "here" not in discover()


def test_a_plugin_of_an_installed_package_is_found_by_entry_point(plugins: Path, tmp_path, monkeypatch):
    write(tmp_path / "site" / "their_package" / "methods", "theirs")
    for package in ("their_package", "their_package/methods"):
        (tmp_path / "site" / package / "__init__.py").write_text("")
    info = tmp_path / "site" / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zslx.interventions]\ntheirs = their_package.methods.theirs:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    [source] = discover()["theirs"]
    assert source.module == "their_package.methods.theirs" and "their_package" not in sys.modules
    assert load_intervention("theirs").power == 1.0
    write(plugins, "theirs")
    with pytest.raises(ValueError, match="'theirs' is defined twice"):
        resolve("theirs")


def test_one_name_in_two_places_is_an_error_with_both(plugins: Path):
    path = write(plugins, "pcgrad")
    with pytest.raises(ValueError, match=r"'pcgrad' is defined twice: .*gradient_surgery.pcgrad\.py and ") as error:
        load_intervention("pcgrad")
    assert str(path) in str(error.value)
    card = registry.describe("pcgrad", discover()["pcgrad"])
    assert card["status"].startswith("absent: defined twice")


def test_listing_runs_no_plugin(plugins: Path, tmp_path):
    (plugins / "loud.py").write_text(PLUGIN.format(name="loud") + f"\nimport os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    card = registry.describe("loud", discover()["loud"])
    assert not (tmp_path / "ran").exists()
    assert card["summary"] == "Weighs tokens by mine."
    assert card["settings"][0] == {"name": "power", "type": "float", "help": "strength", "default": 1.0} | {
        "low": 0.0,
        "high": 2.0,
    }
    resolve("loud+pcgrad")
    assert not (tmp_path / "ran").exists()
    load_intervention("loud")
    assert (tmp_path / "ran").exists()


def test_a_file_that_does_not_parse_says_so(plugins: Path):
    (plugins / "torn.py").write_text("class (\n")
    assert "cannot be parsed" in registry.describe("torn", discover()["torn"])["status"]
    with pytest.raises(ValueError, match=r"'torn' \(.*torn\.py\) fails on import: SyntaxError"):
        load_intervention("torn")


def test_a_file_that_fails_on_import_says_so(plugins: Path):
    (plugins / "bad.py").write_text(PLUGIN.format(name="bad").replace("name =", "x: int = 1 / 0\n    name ="))
    with pytest.raises(ValueError, match=r"'bad' \(.*bad\.py\) fails on import: ZeroDivisionError"):
        load_intervention("bad")


def test_an_absent_one_is_refused_with_its_reason(plugins: Path):
    path = plugins / "gone.py"
    path.write_text(PLUGIN.format(name="gone").replace("    power", '    status = "absent: no code"\n    power', 1))
    with pytest.raises(ValueError, match="'gone' is absent: no code"):
        load_intervention("gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pcgrd", "did you mean 'pcgrad'"),
        ("", "unknown intervention ''"),
        ("pcgrad+", "unknown intervention ''"),
        ("placebo:", "unknown intervention ''"),
        ("../../etc/passwd", "unknown intervention"),
        ("pcgrad+mgda", "mgda both claim the place"),
        ("cosine+cosine", "both claim the place 'schedule'"),
        ("focal+focal", "focal stands twice"),
        ("placebo:poly", "poly has no placebo: its control is the baseline"),
        ("placebo", "placebo:NAME"),
    ],
)
def test_bad_specs(spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_spec(spec, {})


def test_specs():
    assert load_spec("none", {}) == []
    assert [m.name for m in load_spec("pcgrad + focal+none", {})] == ["pcgrad", "focal"]
    [placebo] = load_spec("placebo:pcgrad", {"pcgrad": {"groups": "domain"}})
    assert placebo.name == "placebo:pcgrad" and placebo.groups == "domain" and placebo.placebo is None
    with pytest.raises(ValueError, match="names several interventions"):
        load_intervention("pcgrad+focal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": "2.5"}, r"mine\.power=2\.5: must be a number from 0\.0 to 2\.0"),
        ({"power": "many"}, r"mine\.power='many': must be a finite number"),
        ({"power": "nan"}, r"mine\.power='nan': must be a finite number"),
        ({"power": True}, r"mine\.power=True: must be a finite number"),
        ({"rounds": 2.5}, r"mine\.rounds=2\.5: must be a whole number"),
        ({"rounds": 0}, r"mine\.rounds=0: must be a number at least 1"),
        ({"mode": "c"}, r"mine\.mode='c': allowed are a, b"),
        ({"flag": "maybe"}, r"mine\.flag='maybe': must be true or false"),
        ({"powr": 1}, r"unknown key 'mine\.powr'; did you mean mine\.power"),
    ],
)
def test_bad_settings(settings: dict, message: str, plugins: Path):
    write(plugins)
    with pytest.raises(ValueError, match=message):
        load_intervention("mine", **settings)


def test_settings_are_read_as_their_types(plugins: Path):
    write(plugins)
    method = load_intervention("mine", power="1e-1", rounds="4", mode="b", flag="true")
    assert (method.power, method.rounds, method.mode, method.flag) == (0.1, 4, "b", True)


def test_every_card_is_plain_json_and_complete():
    for name, sources in discover().items():
        card = registry.describe(name, sources)
        assert json.loads(json.dumps(card)) == json.loads(json.dumps(card)) and card["name"] == name
        assert card["family"] and card["summary"] and card["status"]
        if sources[0].module and name != "none":
            assert card["source"] and card["cost"], name
