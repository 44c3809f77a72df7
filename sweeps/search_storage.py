"""The copy of every search that Optuna's dashboard shows: RESULTS/optuna.db, an SQLite database.

The ledger and the seeded samplers are the truth (search.py), so this file may be deleted; the next round writes it
again. SQLite, since a point is one transaction: a process that is killed leaves the points before it. (Optuna's journal
file would keep a torn line, after which nothing of it can be read.) One process writes at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from zslx.locking import locked

if TYPE_CHECKING:
    import optuna

FILE = "optuna.db"


def storage(path: Path) -> optuna.storages.RDBStorage:
    """Optuna's storage in a file. The path is in no URL, since it may hold any character."""
    import optuna
    from sqlalchemy.pool import NullPool

    options = {"creator": lambda: sqlite3.connect(path, timeout=60), "poolclass": NullPool}
    return optuna.storages.RDBStorage("sqlite://", engine_kwargs=options)


def keep(results: Path, studies: Iterable[tuple[str, optuna.Study]]) -> str | None:
    """Add to RESULTS/optuna.db the points that it lacks of these studies, by name; what went wrong, if anything did.

    A study there that holds other points (of an earlier version, say) is replaced. A file that is no database is set
    aside: the search does not need it.
    """
    path = results / FILE
    try:
        with locked(results / f".{FILE}.lock"):
            try:
                _add(path, studies)
            except sqlite3.DatabaseError as error:
                aside = path.with_name(f"{FILE}.damaged-{os.getpid()}")
                path.rename(aside)
                _add(path, studies)
                return f"{path} was no database ({error}): it is now {aside.name}, and a new one is there"
    except Exception as error:
        return f"{path}: Optuna's copy of the search could not be written ({type(error).__name__}: {error})"
    return None


def _add(path: Path, studies: Iterable[tuple[str, optuna.Study]]) -> None:
    import optuna

    if path.exists():
        with sqlite3.connect(path) as connection:
            connection.execute("select name from sqlite_master").fetchall()  # says at once whether it is a database
    kept = storage(path)
    try:
        for name, study in studies:
            copy = optuna.create_study(storage=kept, study_name=name, load_if_exists=True)
            there = copy.get_trials(deepcopy=False)
            if [t.params for t in there] != [t.params for t in study.trials[: len(there)]]:
                optuna.delete_study(study_name=name, storage=kept)
                copy, there = optuna.create_study(storage=kept, study_name=name), []
            for trial in study.trials[len(there) :]:
                copy.add_trial(trial)
    finally:
        kept.remove_session()
        kept.engine.dispose()
