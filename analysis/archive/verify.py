"""Checks an archive: checksums, identities, records, sources, and every number of the comparison, computed anew.

A number agrees where it differs by at most `tolerance`, of its size where that is above 1; one that differs at all is
counted and the largest difference named. Words agree where they are equal. Another machine may round fits otherwise.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zslx
from analysis.archive.arms import arm_faults
from analysis.archive.container import COMPARISON, SOURCES, unpack
from analysis.archive.identities import identity_fault, sources_of
from analysis.archive.records import records_fault
from analysis.archive.write import Progress, claims, source_name
from analysis.study.declaration import Declaration
from zslx.runs.json_files import read_json
from zslx.runs.records import OVER, read_run

TOLERANCE = 1e-9
# What values of wrong types in a hostile file may raise where they are computed with.
UNUSABLE = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, StopIteration),
    *(OSError, MemoryError, RecursionError),
)
LARGEST_STUDY = 1_000_000  # arms × sizes × seeds


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was checked, what was found, and what is wrong, a line each."""

    name: str
    found: str
    faults: tuple[str, ...] = ()


def verify(archive: Path, tolerance: float = TOLERANCE, progress: Progress | None = None) -> Iterator[Check]:
    """The checks of an archive, one after the other. ValueError where it is none that can be unpacked."""
    with tempfile.TemporaryDirectory(prefix="zslx-verify-") as temporary:
        folder = Path(temporary)
        manifest, faults = unpack(archive, folder)
        of, wrong = len(manifest["files"]), tuple(faults)
        yield Check(name="checksums", found=f"of {of} files, written by zslx {manifest['zslx']}", faults=wrong)
        for check in (_trials, _sources, lambda f: _numbers(f, tolerance, progress)):
            try:
                yield check(folder)
            except UNUSABLE as error:
                told = str(error).replace(f"{folder}/", "") or type(error).__name__
                yield Check(name="reading", found="stopped", faults=(told,))
                return


def _trials(folder: Path) -> Check:
    """Each arm has one trial of each size and seed. Of each that is done, the identity follows from its ingredients,
    the records are those of its manifest, and what was hashed is what the study says of its arm and size."""
    if len(studies := sorted(folder.glob("studies/*"))) != 1:
        raise ValueError(f"{len(studies)} studies: an archive has one")
    declared = Declaration.read(studies[0])
    if (cells := len(declared.arms) * len(declared.sizes) * len(declared.seeds)) > LARGEST_STUDY:
        raise ValueError(f"study.json: {cells} arms × sizes × seeds, allowed are {LARGEST_STUDY}")
    arms = {arm.name: arm for arm in declared.arms}
    done = [entry for entry in (*declared.trials, *declared.references) if entry.status in OVER]
    faults, trained = [*_cells(declared)], []
    for entry in done:
        arm = arms.get(entry.arm)
        try:
            run = read_run(folder / "trials" / entry.identity)
            wrong = identity_fault(entry, arm, run.config, run.manifest)
            if arm and not wrong:
                trained.append((entry, run.manifest["ingredients"]))
            wrong = wrong or records_fault(entry, run)
        except UNUSABLE as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{entry.label}: {wrong.replace(f'{folder}/', '')}")
    faults += arm_faults(declared, trained)
    strange = {path.name for path in folder.glob("trials/*")} - {entry.identity for entry in done}
    faults += [f"trials/{name}: is no trial of the study" for name in sorted(strange)]
    told = f"of {len(done)} trials: identities follow from what was hashed, records are whole, arms are what they say"
    return Check(name="trials", found=told, faults=tuple(faults))


def _cells(declared: Declaration) -> Iterator[str]:
    """The trials that study.json lacks, or has more than once."""
    found = Counter((trial.arm, trial.size, trial.seed) for trial in declared.trials)
    for cell in itertools.product((arm.name for arm in declared.arms), declared.sizes, declared.seeds):
        if (times := found.pop(cell, 0)) != 1:
            yield f"{'/'.join(map(str, cell))}: stands {times} times in study.json"
    yield from (f"{'/'.join(map(str, cell))}: is none of its arms, sizes and seeds" for cell in found)


def _sources(folder: Path) -> Check:
    """The sources are those that identities name. One may be missing: then what the method did cannot be read."""
    wanted = {pair for path in folder.glob("trials/*/manifest.json") for pair in sources_of(read_json(path))}
    names = {source_name(*pair): pair for pair in wanted}
    here = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(f"{SOURCES}/*")}
    faults = [f"{SOURCES}/{name}: no identity names it" for name in sorted(here) if name not in names]
    faults += [
        f"{SOURCES}/{name}: is not the file that was hashed"
        for name, digest in sorted(here.items())
        if name in names and names[name][1] != digest
    ]
    absent = sorted(pair[0] for name, pair in names.items() if name not in here)
    told = f"of {len(here)} files of interventions" + (f"; not in the archive: {', '.join(absent)}" if absent else "")
    return Check(name="sources", found=told, faults=tuple(faults))


def _numbers(folder: Path, tolerance: float, progress: Progress | None) -> Check:
    claimed = read_json(folder / COMPARISON)
    tally = Tally(tolerance)
    tally.compare(claimed, claims(folder, progress), "")
    told = f"{tally.numbers} of the comparison computed from the records by zslx {zslx.__version__}"
    if tally.rounded:
        told += f"; {tally.rounded} differ in rounding, most {tally.most}"
    return Check(name="numbers", found=told, faults=tuple(tally.faults))


class Tally:
    """Compares JSON values, leaf by leaf."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.numbers = self.rounded = 0
        self.largest, self.most = 0.0, ""
        self.faults: list[str] = []

    def compare(self, claimed: Any, found: Any, place: str) -> None:
        if isinstance(claimed, Mapping) and isinstance(found, Mapping):
            for key in dict.fromkeys([*found, *claimed]):
                inside = f"{place}.{key}" if place else str(key)
                if key not in claimed or key not in found:
                    where = "claimed, and does not follow" if key in claimed else "not claimed"
                    self.faults.append(f"{inside}: {where}")
                else:
                    self.compare(claimed[key], found[key], inside)
        elif isinstance(claimed, list) and isinstance(found, list) and len(claimed) == len(found):
            for i, (ours, theirs) in enumerate(zip(claimed, found, strict=True)):
                self.compare(ours, theirs, f"{place}[{i}]")
        elif _number(claimed) and _number(found):
            self._compare_numbers(claimed, found, place)
        elif type(claimed) is not type(found) or claimed != found:
            self.faults.append(f"{place}: claimed {_shown(claimed)}, found {_shown(found)}")

    def _compare_numbers(self, claimed: float, found: float, place: str) -> None:
        self.numbers += 1
        if claimed == found:
            return
        difference = abs(claimed - found) / max(1, abs(claimed), abs(found))
        told = f"{place}: claimed {claimed!r}, found {found!r}"
        if not difference <= self.tolerance or not math.isfinite(difference):
            self.faults.append(told)
            return
        self.rounded += 1
        if difference >= self.largest:
            self.largest, self.most = difference, told


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return repr(value)[:80]
