"""What the nodes of a Ray cluster must have in common with the process that plans a sweep, and the check of it.

RAY_ADDRESS names the cluster. Nothing is shipped to its nodes: zslx is installed on each, and RESULTS, plugins and the
text cache lie on storage that every node sees at the same path (docs/cluster.md). A worker checks this before it trains
(`check`), since a node of other sources would give other numbers under the same identity, and one that does not see
RESULTS would train into a folder that nobody reads. A plugin of another source is found by the trial itself: it is part
of the identity (sweeps/trial.py).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import zslx
from zslx.places import ROOT, plugin_folders
from zslx.text.token_cache import cache_folder

PACKAGES = ("zslx", "sweeps", "analysis")  # what a worker runs; the interventions that it uses are in the identity


class Unlike(ValueError):
    """A node that cannot take part: it would spoil every further trial, so the sweep stops."""


def address() -> str | None:
    """The cluster that RAY_ADDRESS names, None for a Ray of the sweep's own; ValueError for one that cannot be used."""
    given = os.environ.get("RAY_ADDRESS") or "local"
    if "://" in given:
        raise ValueError(
            f"RAY_ADDRESS={given}: the sweep must run on a node of the cluster; allowed there are auto and host:port "
            "(from outside, `ray job submit` starts it there)"
        )
    return None if given == "local" else given


@dataclass(frozen=True, kw_only=True)
class Common:
    """What each node must have as the planning process has it. `sources` are digests by file; `mark` is a folder in
    RESULTS that this sweep made."""

    version: str
    sources: Mapping[str, str]
    results: str
    mark: str
    environment: Mapping[str, str]


def common(results: Path, mark: Path) -> Common:
    """What this process has."""
    places = {
        "ZSLX_PLUGINS": os.pathsep.join(str(folder) for folder in plugin_folders()),
        "ZSLX_CACHE": str(cache_folder()),
    }
    return Common(version=zslx.__version__, sources=sources(), results=str(results), mark=str(mark), environment=places)


def check(asked: Common) -> None:
    """Take over the places that `asked` names; Unlike, with this node's name, where something else differs."""
    node = f"node {socket.gethostname()}"
    again = "the same command then goes on"
    if asked.version != zslx.__version__:
        raise Unlike(f"{node} has zslx {zslx.__version__}, the sweep {asked.version}: install one version; {again}")
    if other := differing(asked.sources, sources()):
        more = f" and {len(other) - 1} more files" if len(other) > 1 else ""
        raise Unlike(
            f"{node} has another source of {other[0]}{more} in its zslx {zslx.__version__} at {ROOT} than the sweep: "
            f"install the same on every node; {again}"
        )
    if not Path(asked.mark).is_dir():
        raise Unlike(
            f"{node} does not see RESULTS={asked.results}: it must lie on storage that every node sees at that path; "
            + again
        )
    os.environ.update(asked.environment)


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The names that are not the same in both."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


@cache
def sources() -> dict[str, str]:
    """Digests of zslx's own Python files, by path; read once a process."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files}
