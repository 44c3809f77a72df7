"""The numbers of a run, guarded: when they move, NUMERICS must be raised, or old results pass for new ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from zslx.runs.identity import NUMERICS
from zslx.runs.records import read_run
from zslx.testing.subject import plain, trained

pytestmark = pytest.mark.usefixtures("cache")

# Losses (nats per token) of steps 1, 4 and 16 in float64 on the text below, by intervention, and the number of
# NUMERICS that they belong to.
STORED_FOR = 1
STORED: dict[str, tuple[float, ...]] = {
    "none": (6.5332839779192335, 5.9300524916569515, 5.622249379645961),
    "focal": (6.5332839779192335, 5.930162260011773, 5.622329048350897),
    "pcgrad": (6.5332839779192335, 5.930515851030625, 5.621341086442137),
    "agreement": (6.5332839779192335, 5.930123693887282, 5.621159455756309),
}


def synthetic(folder: Path) -> Path:
    """Two domains of random words, the same with every version of everything."""
    draw = random.Random(0).random
    for domain, letters in (("a", "etaoinsh"), ("b", "rdlucmfw")):
        (folder / domain).mkdir(parents=True)
        words = ["".join(letters[int(8 * draw())] for _ in range(2 + int(5 * draw()))) for _ in range(60)]
        for i in range(4):
            chosen = [words[int(60 * draw() ** 2)] for _ in range(1500)]
            (folder / domain / f"{i}.txt").write_text(" ".join(chosen) + "\n")
    return folder


def losses(name: str, folder: Path) -> tuple[float, ...]:
    values = {"data.path": str(synthetic(folder / "text")), "train.dtype": "float64", "train.steps": 16}
    outcome = trained(plain(values | {"intervention": name}), folder / "run")
    found = read_run(outcome.folder).steps["loss"]
    return tuple(float(found[step - 1]) for step in (1, 4, 16))


@pytest.mark.parametrize("name", STORED)
def test_losses_have_not_moved(name: str, tmp_path: Path):
    found = losses(name, tmp_path)
    moved = found != pytest.approx(STORED[name], rel=1e-9)
    assert not moved or NUMERICS > STORED_FOR, (
        f"the losses of {name} are {found}, not {STORED[name]}: raise zslx.runs.identity.NUMERICS, so that no result of"
        " the old numbers is taken for one of the new, and store the new losses with it"
    )
    assert not moved, f"NUMERICS is {NUMERICS}: store the losses {found} of {name}, and STORED_FOR = {NUMERICS}"
    assert NUMERICS == STORED_FOR, f"NUMERICS is {NUMERICS}: set STORED_FOR to it"
