"""An entry of the leaderboard: what an archive of a study says, as a small file beside it.

An archive of the protocol has about 40 MB, since each number follows from the records of every step: without them
`zslx verify` has nothing to compute from. So archives lie where their authors put them, and the repository has of each
a JSON file of some kB: its sha256, what verifying it found, how it departs from the protocol, and its rows. Whoever has
an archive gets the same entry from it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.archive.container import COMPARISON, unpack
from analysis.archive.verify import verify
from analysis.inference.answers import qualified
from analysis.leaderboard.protocol import arm_departures, departures, scale_of
from analysis.numbers import MISSING, difference, number
from analysis.study.load import Study, load_study
from zslx.runs.integrity import sha256
from zslx.runs.json_files import read_json, write_json
from zslx.runs.shapes import Shape, check

FORMAT = 2
INTERFERENCE = "dt1_heldout.D"  # what is compared at matched loss
COLUMNS = ("loss", "L_d", "t_d", "r_d", "D", "cost", "gain")
TEXTS: dict[str, Shape] = dict.fromkeys(COLUMNS, str)
SHAPE: Shape = {
    "format": int,
    "archive": {"file": str, "bytes": int, "sha256": str, "where": str},
    "verified": [str],
    "study": str,
    "created": str,
    "scale": str,
    "tuned": bool,
    "departures": [str],
    "rows": [{"method": str, "against": str, "word": str, "effect": float | None, "departures": [str], **TEXTS}],
}


def entry(archive: Path, where: str = "") -> dict[str, Any]:
    """The entry of an archive. ValueError where it is none; one that does not verify has no rows."""
    checks = list(verify(archive))
    faults = [f"{check.name}: {line}" for check in checks for line in check.faults]
    found: dict[str, Any] = {
        "format": FORMAT,
        "archive": {"file": archive.name, "bytes": archive.stat().st_size, "sha256": sha256(archive), "where": where},
        "verified": [f"{check.name}: {check.found}" for check in checks],
        "study": "",
        "created": "",
        "scale": "",
        "tuned": False,
        "departures": [f"it does not verify: {fault}" for fault in faults[:3]],
        "rows": [],
    }
    return found if faults else found | of_archive(archive)


def of_archive(archive: Path) -> dict[str, Any]:
    """What the study in an archive comes to that verifies: what it claims then follows from its records."""
    with tempfile.TemporaryDirectory(prefix="zslx-leaderboard-") as temporary:
        folder = Path(temporary)
        unpack(archive, folder)
        return of_study(load_study(folder), read_json(folder / COMPARISON))


def of_study(study: Study, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Scale, departures and rows of a study."""
    scale = scale_of(study)
    other = "" if scale else f"sizes {', '.join(study.sizes)} are those of no scale of the protocol"
    return {
        "study": study.name,
        "created": str(study.created or "")[:10],
        "scale": scale.name if scale else "",
        "tuned": study.tuning is not None,
        "departures": [other] if scale is None else [*departures(study, scale), *unfinished(comparison)],
        "rows": [row(study, comparison, answer) for answer in comparison["answers"]],
    }


def unfinished(comparison: Mapping[str, Any]) -> list[str]:
    """That a study stopped at an early look which gave no answer."""
    at = comparison["looks"]
    if not at or at["decided"] or at["seeds"] >= at["after"][-1]:
        return []
    return [f"stopped at {at['seeds']} of {at['after'][-1]} seeds without an answer"]


def row(study: Study, comparison: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a study says of one arm that it asks about, as texts; `effect` orders the rows, and `against` is empty where
    the arm is compared with the baseline."""
    every = comparison["contrasts"] + comparison["declared_contrasts"]
    of = next(r for r in every if (r["arm"], r["against"]) == (answer["arm"], answer["against"]))
    arm = next(a for a in study.arms if a.name == of["arm"])
    averaged = of["deceleration"][comparison["protocol"]["curve"]]["averaged"]
    matched = next((m["matched_loss"] for m in of["mechanism"] if m["instrument"] == INTERFERENCE), None)
    word = qualified(of["word"], of["beyond_lr_decay"])
    return {
        "method": of["arm"],
        "against": "" if of["against"] == study.baseline.name else of["against"],
        "word": f"exploratory: {word}" if of["exploratory"] else word,
        "effect": of["primary"]["estimate"] if of["primary"] else None,
        "loss": difference(of["primary"]),
        "L_d": difference(averaged["L_d"]),
        "t_d": difference(averaged["t_d"]),
        "r_d": number(averaged["r_d"]),
        "D": number(matched),
        "cost": cost(comparison, of["arm"]),
        "gain": gain(of["scale_equivalent_gain"]),
        "departures": list(arm_departures(study, arm)),
    }


def cost(comparison: Mapping[str, Any], arm: str) -> str:
    """Seconds of a step over the baseline's, over all sizes."""
    known = [cell["cost"]["mean"] for cell in comparison["cells"] if cell["arm"] == arm and cell["cost"]]
    return f"{math.exp(sum(map(math.log, known)) / len(known)):.2f} ×" if known else MISSING


def gain(by_size: Mapping[str, Any]) -> str:
    """The scale-equivalent gain at the largest size that has one."""
    for size, found in reversed([*by_size.items()]):
        if "refused" not in found:
            return f"{found['gain']:.2f} × [{found['low']:.2f}, {found['high']:.2f}] at {size}"
    return MISSING


def update(folder: Path) -> list[dict[str, Any]]:
    """The entries in a folder; those whose archives lie there are verified and made anew, whatever they say.

    ValueError, naming the file, for one that is damaged.
    """
    for archive in sorted(folder.glob("*.zip")):
        path = archive.with_suffix(".json")
        known = read_json(path).get("archive") if path.exists() else None
        where = known.get("where", "") if isinstance(known, dict) else ""
        write_json(path, entry(archive, str(where)))
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    check(path, found, SHAPE)
    if found["format"] != FORMAT:
        raise ValueError(f"{path}: format {found['format']}, known is {FORMAT}: make it again from its archive")
    return found
