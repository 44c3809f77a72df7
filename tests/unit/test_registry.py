"""Names to interventions: where they are found, what is refused, what listing may not do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import py_compile
import re
import sys
import traceback
from pathlib import Path

import pytest

from zslx.config.spec import Spec
from zslx.intervention import discovery, registry
from zslx.intervention.class_text import shipped_placebos
from zslx.intervention.discovery import discover
from zslx.intervention.from_text import TextLoader
from zslx.intervention.registry import load_intervention, load_spec, resolve
from zslx.runs.identity import identity, ingredients

PLUGIN = '''
from dataclasses import dataclass
from zslx.intervention.base import Intervention, setting

@dataclass(frozen=True)
class Mine(Intervention):
    """Weighs tokens by mine."""
    name = "{name}"
    power: float = setting(1.0, "strength", low=0.0, high=2.0)
    rounds: int = setting(3, "how often", low=1)
    mode: str = setting("a", "which", choices=("a", "b"))
    flag: bool = setting(False, "whether")

    def token_weights(self, run, view, state):
        return view.losses ** self.power
'''


def test_which_of_ours_have_a_placebo_is_read_without_importing_them(plugins: Path):
    ours = [name for name, sources in discover().items() if (sources[0].module or "").startswith("interventions.")]
    classes = {name: registry.load_class(name, discover()[name]) for name in ours}
    assert shipped_placebos() == {name: cls.placebo is not None for name, cls in classes.items()}
    assert {*shipped_placebos().values()} == {True, False}


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


def test_folders_in_one_another_are_no_clash(plugins: Path, monkeypatch):
    write(plugins / "deeper", "mine")
    monkeypatch.setenv("ZSLX_PLUGINS", f"{plugins}:{plugins / 'deeper'}:{plugins}")
    assert len(discover()["mine"]) == 1 and load_intervention("mine").rounds == 3


@pytest.mark.parametrize("line", ['odd = {["p"]: 0}', 'odd: int = setting({1, 2}, "a set")', "odd = b'bytes'"])
def test_odd_literals_stop_no_listing(line: str, plugins: Path):
    path = write(plugins, "mine")
    path.write_text(path.read_text().replace("    mode: str", f"    {line}\n    mode: str"))
    json.dumps([registry.describe(name, sources) for name, sources in discover().items()])


@pytest.fixture
def install(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of given files with entry points; forgets its modules afterwards."""
    site, packages = tmp_path / "site", []

    def install(package: str, files: dict[str, str], *points: str) -> Path:
        packages.append(package)
        for file, text in files.items():
            path = site / package / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[zslx.interventions]", *points, ""]))
        monkeypatch.syspath_prepend(str(site))
        discovery._entry_points.cache_clear()
        return site / package

    yield install
    for name in [n for n in sys.modules if n.partition(".")[0] in packages]:
        del sys.modules[name]


def status(name: str) -> str:
    return registry.describe(name, discover()[name])["status"]


def test_a_plugin_of_an_installed_package_is_found_by_entry_point(plugins: Path, install):
    files = {"__init__.py": "", "methods/__init__.py": "", "methods/theirs.py": PLUGIN.format(name="theirs")}
    install("their_package", files, "theirs = their_package.methods.theirs:Mine")
    [source] = discover()["theirs"]
    assert source.module == "their_package.methods.theirs" and "their_package" not in sys.modules
    assert load_intervention("theirs").power == 1.0
    write(plugins, "theirs")
    with pytest.raises(ValueError, match="'theirs' is absent: defined twice"):
        resolve("theirs")


def edited(path: Path, old: str, new: str) -> None:
    """Change a file as an editor within the same second does, or one that keeps the time; Python has it compiled."""
    py_compile.compile(str(path), doraise=True)
    before = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


HELPED = "from .helper import C\n" + PLUGIN.replace("** self.power", "* C")


@pytest.mark.parametrize("place", ["the plugin", "a file beside it", "a folder beside it", "an installed package"])
def test_the_text_that_is_hashed_is_the_text_that_runs(place: str, plugins: Path, install, tiny):
    if place == "an installed package":
        files = {"__init__.py": "", "mine.py": HELPED.format(name="mine"), "helper.py": "C = 0.1\n"}
        helper = install("their_edited_package", files, "mine = their_edited_package.mine:Mine") / "helper.py"
    elif place == "the plugin":
        helper = write(plugins)
        helper.write_text(helper.read_text().replace("** self.power", "* C") + "\nC = 0.1\n")
    else:
        folder = "" if place == "a file beside it" else "beside"
        helper = plugins / folder / "helper.py"
        helper.parent.mkdir(exist_ok=True)
        helper.write_text("C = 0.1\n")
        text = HELPED.replace(".helper", f".{folder}.helper" if folder else ".helper")
        (plugins / "mine.py").write_text(text.format(name="mine"))
    hashed = [hashlib.sha256(helper.read_bytes()).hexdigest()]
    edited(helper, "C = 0.1", "C = 0.2")
    hashed.append(hashlib.sha256(helper.read_bytes()).hexdigest())
    mine = load_intervention("mine")
    assert mine.token_weights.__globals__["C"] == 0.2
    sources = ingredients(tiny(intervention="mine"))["sources"].values()
    assert hashed[0] not in sources and hashed[1] in sources


def test_our_own_are_imported_from_their_text_too():
    method = load_intervention("pcgrad")
    for name in (type(method).__module__, "interventions"):
        assert isinstance(sys.modules[name].__spec__.loader, TextLoader)


def test_what_a_plugin_raises_shows_its_line(plugins: Path):
    text = PLUGIN.replace("return view.losses ** self.power", "raise KeyError(run)  # this very line")
    (plugins / "mine.py").write_text(text.format(name="mine"))
    with pytest.raises(KeyError) as raised:
        load_intervention("mine").token_weights(None, None, {})
    assert "raise KeyError(run)  # this very line" in "".join(traceback.format_exception(raised.value))


def test_an_entry_point_to_a_class_that_its_module_imports(install):
    files = {"__init__.py": "from reexporting.meth import Mine", "meth.py": PLUGIN.format(name="shown")}
    folder = install("reexporting", files, "shown = reexporting:Mine")
    [source] = discover()["shown"]
    card = registry.describe("shown", [source])
    assert source.path == folder / "__init__.py" and card["status"] == "available" and "__init__" in card["summary"]
    resolve("shown+pcgrad")
    assert "reexporting" not in sys.modules
    assert load_intervention("shown", power=2).power == 2.0
    assert {path.name for path in registry.source_files(load_intervention("shown"))} == {"meth.py"}


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ("lost = nowhere_at_all:Mine", "nowhere_at_all:Mine: there is no such module"),
        ("lost = broken_points.gone:Mine", r"broken_points\.gone:Mine: there is no such module"),
        ("lost = broken_points.meth.gone:Mine", r"broken_points\.meth\.gone:Mine: there is no such module"),
        ("lost = no-module", "no-module: there is no such module"),
        ("lost = broken_points.meth:Mine", "that class has name = 'other'"),
        ("lost = broken_points.torn:Mine", r"torn\.py cannot be parsed: invalid syntax"),
    ],
)
def test_a_broken_entry_point_is_listed_as_absent_and_refused(point: str, reason: str, install):
    files = {"__init__.py": "", "meth.py": PLUGIN.format(name="other"), "torn.py": "class ("}
    install("broken_points", files, point)
    assert re.search(f"^absent: .*{reason}", status("lost"))
    with pytest.raises(ValueError, match=f"'lost' is absent: .*{reason}"):
        load_intervention("lost")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("late = late_points:Mine", r"late_points.__init__\.py defines no subclass of .* with name = 'late'"),
        ("late = late_points:Gone", r"late_points.__init__\.py\) fails on import: AttributeError"),
    ],
)
def test_what_is_wrong_with_an_entry_point_may_show_on_import(point: str, message: str, install):
    install("late_points", {"__init__.py": "from .meth import Mine", "meth.py": PLUGIN.format(name="other")}, point)
    assert status("late") == "available"
    with pytest.raises(ValueError, match=message):
        load_intervention("late")


@pytest.mark.parametrize("name", ["model", "optim", "run", "intervention", "reference", "settings", "baseline"])
def test_a_name_that_means_something_else_is_refused_with_its_file(name: str, plugins: Path):
    path = write(plugins, name, file="mine")
    assert status(name).startswith(f"absent: {path} gives it a name that is ")
    for refused in (resolve, load_intervention):
        with pytest.raises(ValueError, match=rf"'{name}' is absent: .*mine\.py .*: allowed is any other"):
            refused(name)


def test_one_name_in_two_places_is_an_error_with_both(plugins: Path):
    path = write(plugins, "pcgrad")
    with pytest.raises(
        ValueError, match=r"'pcgrad' is absent: defined twice: .*gradient_surgery.pcgrad\.py and "
    ) as error:
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
    assert "cannot be parsed" in status("torn")
    with pytest.raises(ValueError, match=r"'torn' is absent: .*torn\.py cannot be parsed: invalid syntax .*line 1"):
        load_intervention("torn")


@pytest.mark.parametrize(("line", "error"), [("1 / 0", "ZeroDivisionError"), ("raise SystemExit(3)", "SystemExit")])
def test_a_file_that_fails_on_import_says_so(line: str, error: str, plugins: Path):
    (plugins / "bad.py").write_text(PLUGIN.format(name="bad") + line)
    with pytest.raises(ValueError, match=rf"'bad' \(.*bad\.py\) fails on import: {error}"):
        load_intervention("bad")


POST_INIT = "\n    def __post_init__(self):\n        "
ABSTRACT = """
from dataclasses import dataclass
from zslx import GramianMethod

@dataclass(frozen=True)
class Bad(GramianMethod):
    name = "bad"
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLUGIN.format(name="bad") + POST_INIT + "self.no_such_thing", r"'bad' \(.*bad\.py\) .*AttributeError"),
        (PLUGIN.format(name="bad") + POST_INIT + "raise SystemExit", r"'bad' \(.*bad\.py\) .*SystemExit"),
        (PLUGIN.format(name="bad") + POST_INIT + 'raise ValueError("bad.power: odd")', "^bad.power: odd$"),
        (ABSTRACT, r"'bad' \(.*bad\.py\) cannot be made: TypeError.*solve"),
    ],
)
def test_a_class_of_which_no_object_can_be_made_says_so(text: str, message: str, plugins: Path):
    (plugins / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_intervention("bad")


def test_the_placebo_of_a_class_that_fails_names_its_file(plugins: Path):
    text = PLUGIN.format(name="bad").replace("power:", 'placebo = "tokens"\n    power:')
    (plugins / "bad.py").write_text(text + POST_INIT + "1 / 0")
    with pytest.raises(ValueError, match=r"'placebo:bad' \(.*bad\.py\) cannot be made: ZeroDivisionError"):
        load_intervention("placebo:bad")


def test_an_absent_one_is_refused_with_its_reason(plugins: Path):
    path = plugins / "gone.py"
    path.write_text(PLUGIN.format(name="gone").replace("    power", '    status = "absent: no code"\n    power', 1))
    with pytest.raises(ValueError, match="'gone' is absent: no code"):
        load_intervention("gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pcgrd", "did you mean 'pcgrad'"),
        ("", r"intervention '': its part '' is empty; allowed are NAME and placebo:NAME"),
        (" ", r"intervention ' ': its part '' is empty"),
        ("pcgrad+", r"intervention 'pcgrad\+': its part '' is empty"),
        ("pcgrad++focal", r"intervention 'pcgrad\+\+focal': its part '' is empty"),
        ("placebo:", "intervention 'placebo:': its part 'placebo:' is empty"),
        ("pcgrad+placebo: ", r"intervention 'pcgrad\+placebo: ': its part 'placebo:' is empty"),
        ("none+pcgrad", r"intervention 'none\+pcgrad': 'none' is the baseline and stands alone"),
        ("pcgrad+none", "'none' is the baseline and stands alone"),
        (None, "intervention None: must be a text, such as 'pcgrad'"),
        (3, "intervention 3: must be a text"),
        ("../../etc/passwd", "unknown intervention"),
        ("pcgrad+mgda", "mgda both claim the place"),
        ("cosine+cosine", "cosine stands twice"),
        ("focal+focal", "focal stands twice"),
        ("placebo:poly", "poly has no placebo: its control is the baseline"),
        ("placebo", "placebo:NAME"),
    ],
)
def test_bad_specs(spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_spec(spec, {})
    if "both" not in message and "twice" not in message:  # what one part alone can be refused for
        with pytest.raises(ValueError, match=message):
            load_intervention(spec)


def test_specs():
    assert load_spec("none", {}) == []
    assert [m.name for m in load_spec("pcgrad + focal", {})] == ["pcgrad", "focal"]
    [placebo] = load_spec("placebo:pcgrad", {"pcgrad": {"groups": "domain"}})
    assert placebo.name == "placebo:pcgrad" and placebo.groups == "domain" and placebo.placebo is None
    with pytest.raises(ValueError, match="names several interventions"):
        load_intervention("pcgrad+focal")


@pytest.mark.parametrize(
    ("spelled", "spec"),
    [(" pcgrad ", "pcgrad"), ("pcgrad + focal", "pcgrad+focal"), ("placebo: pcgrad", "placebo:pcgrad")],
)
def test_white_space_in_a_spec_makes_no_other_trial(spelled: str, spec: str, tiny):
    values = {"intervention": spec, "pcgrad.groups": "domain"}
    config = tiny(**values | {"intervention": spelled})
    assert config == tiny(**values) == dataclasses.replace(config, intervention=f"{spelled} ")
    assert identity(config) == identity(tiny(**values))
    assert resolve(spelled) == resolve(spec) == Spec.parse(spelled).names


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
