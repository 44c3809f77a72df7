"""Makes the archive of a study: a results folder of this study alone, packed (container.py).

A trial that is finished or diverged comes with its settings, manifest and records, byte for byte; checkpoints stay
behind. One that is not done, or whose records are damaged, stands in study.json with the reason. Places of this machine
(paths in settings, commands and messages) are reduced to their last part; there are no host and user names in records.
What an identity hashes is left as it is. The comparison is computed from what is packed, as whoever verifies it does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import zslx
from analysis.archive.container import COMPARISON, SOURCES, pack
from analysis.archive.identities import identity_fault, sources_of
from analysis.archive.scrub import without_places
from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import load
from analysis.study.declaration import Declaration, Entry
from analysis.study.load import find_study, load_trial
from zslx.places import PLUGIN_GROUP, ROOT, plugin_folders
from zslx.runs.evaluations import FILE as EVALUATIONS
from zslx.runs.json_files import dumps, loads, write_json
from zslx.runs.records import LINE_FILES, OVER, read_run
from zslx.slug import slug

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Archived:
    """What went into an archive. `notes`: what did not, a line each."""

    trials: int
    files: int
    notes: tuple[str, ...]


def archive(results: Path, name: str | None, out: Path, progress: Progress | None = None) -> Archived:
    """Write the archive `out` of a study. ValueError where a trial could not be verified."""
    if out.exists():
        raise ValueError(f"{out}: exists; give a file that does not")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: no such folder")
    with tempfile.TemporaryDirectory(prefix=".zslx-archive-", dir=out.parent) as temporary:
        staged = _Staged(results.resolve(), find_study(results, name), Path(temporary))
        return staged.write(out, progress)


def claims(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """The comparison of the one study in a results folder, as JSON values without the folder's place."""
    breaks = load(folder)
    breaks.fit_all(progress)
    found: dict[str, Any] = without_places(loads(dumps(compare_study(breaks)).encode()), [folder])
    return found


class _Staged:
    """The files of an archive, as they are put together in `folder`."""

    def __init__(self, results: Path, study: Path, folder: Path):
        self.results, self.study, self.folder = results, study, folder
        self.declared = Declaration.read(study)
        self.manifests: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []

    def write(self, out: Path, progress: Progress | None) -> Archived:
        trials, references = (
            tuple(map(self._entry, some)) for some in (self.declared.trials, self.declared.references)
        )
        given = replace(self.declared, trials=trials, references=references)
        places = [self.results, Path.cwd(), Path.home()]
        Declaration.from_dict(without_places(given.to_dict(), places)).write(
            self.folder / "studies" / slug(self.study.name, 200)
        )
        self._sources()
        write_json(self.folder / COMPARISON, claims(self.folder, progress))
        pack(self.folder, out, {"zslx": zslx.__version__, "versions": self._versions()})
        files = sum(path.is_file() for path in self.folder.rglob("*"))
        return Archived(trials=len(self.manifests), files=files, notes=tuple(self.notes))

    def _entry(self, entry: Entry) -> Entry:
        """How the trial stands, its folder staged where it is done."""
        trial = load_trial(self.results, entry)
        if trial.status in OVER and trial.folder:
            self._stage(entry)
        else:
            self.notes.append(f"{entry.label}: {trial.status}: {trial.error or 'not done'}; its records stay behind")
        return Entry(**{f.name: getattr(trial, f.name) for f in fields(Entry)})

    def _stage(self, entry: Entry) -> None:
        source, target = (root / "trials" / entry.identity for root in (self.results, self.folder))
        run = read_run(source)
        arm = next((arm for arm in self.declared.arms if arm.name == entry.arm), None)
        if wrong := identity_fault(entry, arm, run.config, run.manifest):
            raise ValueError(f"{source}: nobody could check the identity of this trial: {wrong}")
        if entry.identity in self.manifests:  # arms that coincide share a run
            return
        self.manifests[entry.identity] = run.manifest
        target.mkdir(parents=True)
        for name in (*(f"{name}.jsonl" for name in LINE_FILES), EVALUATIONS):
            if (source / name).exists():
                shutil.copyfile(source / name, target / name)
        known = [self.results, Path.cwd(), Path.home()]
        hashed = {"ingredients": run.manifest["ingredients"]}
        if without_places(hashed, known) != hashed:
            self.notes.append(
                f"{entry.label}: its identity hashes a path of this machine, which stays in manifest.json"
            )
        write_json(target / "config.json", without_places(_without_folders(run.config), known))
        write_json(target / "manifest.json", without_places(run.manifest, known) | hashed)

    def _sources(self) -> None:
        """Copy the source files that identities name, as far as they are on this machine as they were then."""
        wanted = {pair for manifest in self.manifests.values() for pair in sources_of(manifest)}
        if not wanted:
            return
        folder = self.folder / SOURCES
        folder.mkdir()
        for path in _source_files():
            data = path.read_bytes()
            pair = "/".join(path.parts[-2:]), hashlib.sha256(data).hexdigest()
            if pair in wanted:
                wanted.discard(pair)
                (folder / source_name(*pair)).write_bytes(data)
        for name, digest in sorted(wanted):
            self.notes.append(f"the source {name} ({digest[:16]}) is not on this machine any more: not archived")

    def _versions(self) -> dict[str, list[str]]:
        """The versions of packages with which the trials were trained."""
        found: dict[str, set[str]] = {}
        for manifest in self.manifests.values():
            for package, version in (manifest.get("versions") or {}).items():
                found.setdefault(package, set()).add(str(version))
        return {package: sorted(versions) for package, versions in sorted(found.items())}


def source_name(name: str, digest: str) -> str:
    """The file of an archive for a source file, which may have several versions: `0123456789abcdef-pcgrad.py`."""
    return f"{digest[:16]}-{slug(name.rpartition('/')[2], 100)}"


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose text, tokenizer and reference run are named and not placed: hashes say what they hold."""
    data = {k: Path(v).name if k in ("path", "tokenizer") and v else v for k, v in config["data"].items()}
    return {**config, "data": data, "reference": Path(str(config.get("reference") or "")).name}


def _source_files() -> Iterator[Path]:
    """Files that may define interventions: zslx's own, those of plugin folders, and of packages with entry points."""
    for folder in (ROOT / "interventions", *plugin_folders()):
        yield from sorted(folder.rglob("*.py"))
    for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        files = (point.dist.files if point.dist else None) or []
        yield from (Path(str(file.locate())) for file in files if file.suffix == ".py")
