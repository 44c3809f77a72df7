"""What the identity of a trial covers: a changed plugin changes exactly its trials; instruments change none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zslx.intervention.registry import load_intervention, source_files
from zslx.runs import identity as module
from zslx.runs.identity import identity, ingredients
from zslx.testing.subject import WATCHED, plain, text

pytestmark = pytest.mark.usefixtures("cache")

PLUGIN = """
from dataclasses import dataclass
from zslx.intervention.base import Intervention, setting
{imports}

FACTOR = {factor}

@dataclass(frozen=True)
class Mine(Intervention):
    name = "{name}"
    power: float = setting(1.0, "power")

    def token_weights(self, run, view, state):
        return view.losses ** (self.power * FACTOR)
"""


def write(folder: Path, name: str, factor: float = 1.0, imports: str = "") -> None:
    (folder / f"{name}.py").write_text(PLUGIN.format(name=name, factor=factor, imports=imports))


def of(spec: str = "none", **values) -> str:
    return identity(plain({"intervention": spec} | values))


def test_a_changed_constant_changes_exactly_its_trials(plugins: Path):
    write(plugins, "mine")
    write(plugins, "other")
    specs = ("none", "pcgrad", "mine", "other", "mine+cosine", "placebo:pcgrad")
    before = {spec: of(spec) for spec in specs}
    assert len(set(before.values())) == len(specs)
    assert before == {spec: of(spec) for spec in specs}
    write(plugins, "mine", factor=1.5)
    after = {spec: of(spec) for spec in specs}
    assert {spec for spec in specs if before[spec] != after[spec]} == {"mine", "mine+cosine"}
    write(plugins, "mine")
    assert of("mine") == before["mine"]


@pytest.mark.parametrize("imports", ["from .shared import X", "from . import shared"])
def test_files_beside_a_plugin_that_it_imports_count(imports: str, plugins: Path):
    (plugins / "shared.py").write_text("X = 1\n")
    (plugins / "unrelated.py").write_text("Y = 1\n")
    write(plugins, "mine", imports=imports)
    before = of("mine")
    assert {f.name for f in source_files(load_intervention("mine"))} == {"mine.py", "shared.py"}
    (plugins / "unrelated.py").write_text("Y = 2\n")
    assert of("mine") == before
    (plugins / "shared.py").write_text("X = 2\n")
    assert of("mine") != before


def test_files_of_one_name_in_two_folders_do_not_meet(plugins: Path):
    for folder, factor in (("a", 1), ("b", 2)):
        (plugins / folder).mkdir()
        (plugins / folder / "shared.py").write_text(f"X = {factor}\n")
        (plugins / folder / "weights.py").write_text(
            PLUGIN.format(name=f"mine_{folder}", factor=factor, imports="from .shared import X")
        )
    first, second = load_intervention("mine_a"), load_intervention("mine_b")
    for method, folder in ((first, "a"), (second, "b")):
        assert {f.parent.name for f in source_files(method)} == {folder}
        imported = sys.modules[type(method).__module__]
        assert imported.X == imported.FACTOR == ("a", "b").index(folder) + 1


def test_a_package_beside_a_plugin_counts_with_what_it_imports(plugins: Path):
    (plugins / "helpers").mkdir()
    (plugins / "helpers" / "__init__.py").write_text("from .deep import X\n")
    (plugins / "helpers" / "deep.py").write_text("X = 1\n")
    write(plugins, "mine", imports="from .helpers import X")
    before = of("mine")
    (plugins / "helpers" / "deep.py").write_text("X = 2\n")
    assert of("mine") != before


@pytest.mark.parametrize("imports", ["from their_methods.constants import X", "from .constants import X",
                                     "from ..constants import X"])  # fmt: skip
def test_the_modules_of_an_installed_plugin_count(imports: str, plugins: Path, tmp_path: Path, monkeypatch):
    site, inner = tmp_path / "site", "sub" if ".." in imports else "."
    package = site / "their_methods"
    (package / inner).mkdir(parents=True)
    for folder in {package, package / inner}:
        (folder / "__init__.py").write_text("")
    (package / "constants.py").write_text("X = 1\n")
    write(package / inner, "theirs", imports=imports)
    info = site / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_methods\nVersion: 1.0\n")
    module = "their_methods.sub.theirs" if inner == "sub" else "their_methods.theirs"
    (info / "entry_points.txt").write_text(f"[zslx.interventions]\ntheirs = {module}:Mine\n")
    monkeypatch.syspath_prepend(str(site))
    try:
        before = of("theirs")
        (package / "constants.py").write_text("X = 2\n")
        assert of("theirs") != before
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "their_methods"]:
            del sys.modules[name]


def test_files_that_share_folder_and_name_all_count(tmp_path: Path, monkeypatch):
    folders = [tmp_path / part / "plugins" for part in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "common.py").write_text("X = 1\n")
        write(folder, f"mine_{folder.parent.name}", imports="from .common import X")
    monkeypatch.setenv("ZSLX_PLUGINS", ":".join(map(str, folders)))
    found = [of("mine_a+mine_b")]
    for folder in folders:
        (folder / "common.py").write_text("X = 2\n")
        found.append(of("mine_a+mine_b"))
    assert len(set(found)) == 3


def test_helpers_count_and_the_bases_that_zslx_gives_do_not():
    names = {f.name for f in source_files(load_intervention("pcgrad"))}
    assert names == {"pcgrad.py"}  # what zslx gives is covered by NUMERICS
    assert source_files(load_intervention("placebo:pcgrad")) == source_files(load_intervention("pcgrad"))
    assert {f.name for f in source_files(load_intervention("upgrad"))} >= {"upgrad.py", "complementarity.py"}


@pytest.mark.parametrize(
    "values", [WATCHED, {"run.resume_seconds": 1.0}, {"instruments.token_samples": 64}, {"train.device": "auto"}]
)
def test_what_only_observes_or_keeps_is_no_part_of_it(values: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert of(**values) == of()


@pytest.mark.parametrize(
    "values",
    [
        {"train.seed": 1},
        {"train.steps": 7},
        {"train.dtype": "float64"},
        {"train.threads": 2},
        {"optim.lr": 1e-3},
        {"data.batch_size": 8},
        {"data.vocab_size": 300},
        {"model.tied": False},
    ],
)
def test_what_decides_the_numbers_is_part_of_it(values: dict):
    assert of(**values) != of()


def test_settings_count_as_resolved():
    """A default spelled out is the same trial; another value is not; settings of an absent method are refused."""
    assert of("focal", **{"focal.gamma": 1.0}) == of("focal") == of("focal", **{"focal.gamma": "1"})
    assert of("focal", **{"focal.gamma": 2.0}) != of("focal")
    with pytest.raises(ValueError, match=r"unknown key 'focal\.gamma'"):
        of("none", **{"focal.gamma": 2.0})


def test_the_text_counts_not_its_place(tmp_path: Path):
    copy = tmp_path / "elsewhere"
    for file in text().rglob("*.txt"):
        (copy / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / file.parent.name / file.name).write_bytes(file.read_bytes())
    assert of(**{"data.path": str(copy)}) == of()
    [file, *_] = sorted(copy.rglob("*.txt"))
    file.write_text(file.read_text().replace("import", "export"))
    assert of(**{"data.path": str(copy)}) != of()


def test_numerics_and_torch_count(monkeypatch: pytest.MonkeyPatch):
    before = of()
    monkeypatch.setattr(module, "NUMERICS", module.NUMERICS + 1)
    assert of() != before
    monkeypatch.undo()
    monkeypatch.setattr("torch.__version__", "0.0")
    assert of() != before


def test_how_groups_are_weighted_counts_where_a_method_does(monkeypatch: pytest.MonkeyPatch):
    specs = ("none", "focal", "agreement", "famo", "mgda+cosine", "placebo:pcgrad")
    before = {spec: of(spec) for spec in specs}
    monkeypatch.setattr(module, "WEIGHED", module.WEIGHED + 1)
    assert {spec for spec in specs if of(spec) != before[spec]} == {"famo", "mgda+cosine", "placebo:pcgrad"}


def test_the_reference_counts_by_what_it_is(tmp_path: Path):
    """The folder's place does not matter, the run in it does; an unfinished one is refused."""
    from zslx.runs.json_files import read_json, write_json
    from zslx.training.train import train

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(plain({"train.seed": seed, "train.steps": 2}), tmp_path / name)
    a, b, c = (of("rho1", reference=str(tmp_path / name)) for name in "abc")
    assert a == b != c
    with pytest.raises(ValueError, match=r"reference=.*c: that run has another tokenizer .*data\.vocab_size="):
        of("rho1", reference=str(tmp_path / "c"), **{"data.vocab_size": 300})
    manifest = tmp_path / "a" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"status": "running"})
    with pytest.raises(ValueError, match="that run is running, not finished"):
        of("rho1", reference=str(tmp_path / "a"))


def test_ingredients_are_plain_json_without_paths():
    import json

    parts = ingredients(plain({"intervention": "pcgrad"}))
    written = json.dumps(parts, allow_nan=False)
    assert json.loads(written) == parts
    assert str(text()) not in written and str(Path.home()) not in written
