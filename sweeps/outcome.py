"""What a sweep's training came to: which trials it trained, and which failed and why."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Failure:
    """Why a trial was given up: one line, and the traceback where there is one."""

    error: str
    details: str = ""


@dataclass
class Outcome:
    """Trials by their keys, and notes for the user.

    `trained` holds those that this sweep's own workers trained. A trial that another sweep finished meanwhile is
    neither there nor among the failures.
    """

    trained: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
