"""Each template that `zslx interventions new --family` writes passes the shipped suite; classes of a session train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from zslx import Intervention, RunView, setting, train
from zslx.commands.interventions import FAMILIES
from zslx.intervention import discovery, scaffold
from zslx.testing import Subject, examine
from zslx.testing.subject import plain

pytestmark = pytest.mark.usefixtures("cache")


def test_the_command_line_knows_the_families():
    assert FAMILIES == scaffold.FAMILIES


def test_an_unknown_family_is_refused_with_what_is_allowed(plugins: Path):
    with pytest.raises(ValueError, match="family 'magic': allowed are adaptive, curriculum"):
        scaffold.write("idea", plugins, "magic")


@pytest.mark.medium
@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_passes_the_suite(family: str, plugins: Path, tmp_path: Path):
    written, _ = scaffold.write("fresh_idea", plugins, family)
    assert len(written.read_text().splitlines()) <= 60 and "my_idea" not in written.read_text()
    results = examine(Subject("fresh_idea", tmp_path))
    assert not [f"{check.__name__}: {why}" for check, result, why in results if result == "fail"]


@dataclass(frozen=True)
class Halved(Intervention):
    """Trains at a share of the rate."""

    name = "halved"
    share: float = setting(0.5, "share of the rate", low=0.0, high=1.0)

    def lr_factor(self, run: RunView, state: dict) -> float:
        return self.share


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_defined", {})


def test_a_class_that_is_in_no_plugin_folder_trains_and_is_checked(session: None, tmp_path: Path):
    manifest = train(plain({}), tmp_path / "run", intervention=Halved(share=0.25))
    assert manifest["status"] == "finished" and manifest["ingredients"]["config"]["settings"] == {
        "halved": {"share": 0.25}
    }
    again = train(plain({}), tmp_path / "other", intervention=Halved(share=0.5))
    assert again["identity"] != manifest["identity"]
    assert {r for _, r, _ in examine(Subject("halved", tmp_path / "check"))} <= {"pass", "skip"}


def test_an_edited_cell_is_another_identity(session: None, tmp_path: Path):
    """Classes that no file defines, as in a notebook."""
    identities = []
    for factor in ("0.5", "0.25", "0.5"):
        cell = {"__name__": "__cell__", "Intervention": Intervention, "dataclass": dataclass}
        exec(
            "@dataclass(frozen=True)\nclass Cell(Intervention):\n    'One of a cell.'\n    name = 'cell'\n"
            f"    def lr_factor(self, run, state):\n        return {factor}\n",
            cell,
        )
        manifest = train(plain({}), tmp_path / str(len(identities)), intervention=cell["Cell"]())
        identities.append(manifest["identity"])
        assert list(manifest["ingredients"]["sources"]) == ["session/Cell"]
    assert identities[0] == identities[2] != identities[1]


def test_a_name_that_a_file_defines_is_not_taken_by_a_session(session: None, tmp_path: Path):
    cls = type("Pcgrad", (Intervention,), {"name": "pcgrad"})
    with pytest.raises(ValueError, match=r"'pcgrad' exists: .*pcgrad\.py; choose another name"):
        train(plain({}), tmp_path / "run", intervention=cls())
