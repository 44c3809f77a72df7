"""The tests that every intervention inherits: a plugin's own test is these few lines.

    @pytest.fixture(scope="module")
    def subject(tmp_path_factory):
        return Subject("NAME", tmp_path_factory.mktemp("NAME"))

    @pytest.mark.parametrize("check", CHECKS)
    def test_NAME(check, subject):
        check(subject)

A check trains the intervention for a few steps on a tiny model and a little text, and raises AssertionError, saying
what broke, or NotApplicable (which pytest takes for a skip). `examine` runs all of them without pytest, for
`zslx interventions check NAME`. The suite itself is tested on plugins that break each of its laws
(tests/invariants/test_interventions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zslx.testing.laws import CHECKS
from zslx.testing.subject import NotApplicable, Outcome, Subject, text

__all__ = ["CHECKS", "NotApplicable", "Outcome", "Subject", "examine", "text"]


def examine(subject: Subject) -> Iterator[tuple[Callable[[Subject], None], str, str]]:
    """(check, "pass" | "fail" | "skip", why) of every check in turn."""
    for check in CHECKS:
        try:
            check(subject)
        except NotApplicable as reason:
            yield check, "skip", str(reason)
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            yield check, "fail", kind + str(error)
        else:
            yield check, "pass", ""
