"""A study in wandb: its run, and the report. Nothing names a place of this machine: of a path its last part is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from analysis.archive.scrub import without_places
from analysis.inference.pooled_breaks import PooledBreaks
from analysis.inference.rows import Comparison
from analysis.report import wandb_report
from analysis.report.blocks import Block
from analysis.report.report import blocks as blocks_of
from analysis.report.report import write_report
from analysis.report.wandb_report import Runs
from analysis.report.wandb_study import log_study
from zslx.printable import one_line
from zslx.runs.json_files import dumps, loads
from zslx.tracking.wandb_run import no_account


def report_in_wandb(breaks: PooledBreaks, comparison: Comparison, page: Path, mode: str) -> list[str]:
    """Log the study's run and make the report; lines that say where they are, or what went wrong."""
    sent = Sent.of(breaks, comparison)
    reason = no_account() if mode == "online" else "offline, as asked"
    wrong = sent.log(page, "offline" if reason else "online")
    told = [wrong] if wrong else []
    path, runs = page.with_suffix(".wandb.json"), Runs.of(breaks.study)
    title = f"zslx: {sent.comparison['study']}"
    if not reason:
        try:
            return [*told, f"wandb: {wandb_report.publish(sent.blocks, path, title=title, runs=runs)}"]
        except Exception as error:  # whatever the network and wandb do
            reason = failed(error)
    told.append(f"wandb: the report was not saved: {reason}")
    wandb_report.write(wandb_report.render(sent.blocks, title=title, runs=runs), path)
    again = f"zslx report {breaks.study.folder} --wandb online"
    return [*told, f"wandb: it is in {path}; with an account, this saves it: {again}"]


def log_run_of_study(breaks: PooledBreaks, comparison: Comparison, page: Path, mode: str) -> str | None:
    """Log the study's run alone; what went wrong, if anything did. Nobody is asked for a key."""
    if mode == "online" and (reason := no_account()):
        return f"wandb: the study's run was not logged: {reason}"
    return Sent.of(breaks, comparison).log(page, mode)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A study as wandb gets it. `changed`: the report that lies here names places of this machine."""

    breaks: PooledBreaks
    declared: Mapping[str, Any]
    comparison: Comparison
    blocks: Sequence[Block]
    changed: bool

    @staticmethod
    def of(breaks: PooledBreaks, comparison: Comparison) -> Sent:
        places = [_results(breaks).absolute(), Path.cwd(), Path.home()]
        plain = loads(dumps(comparison).encode())
        arms = [arm.name for arm in breaks.study.arms]  # which are also keys, and in wandb as the runs' job types
        clean = cast("Comparison", without_places(plain, places, arms))
        return Sent(
            breaks=breaks,
            declared=without_places(breaks.study.to_dict(), places, arms),
            comparison=clean,
            blocks=blocks_of(breaks, clean),
            changed=clean != plain,
        )

    def log(self, page: Path, mode: str) -> str | None:
        """Log the study's run; what went wrong, if anything did: wandb must not cost a report."""
        results = _results(self.breaks)
        own = results / "wandb" / "page.html"
        try:
            if self.changed:
                page = write_report(self.breaks, own, self.comparison)
            log_study(self.declared, self.comparison, self.blocks, page, results, mode)
        except Exception as error:
            return f"wandb: the study's run was not logged: {failed(error)}; the report has everything"
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)
        return None


def _results(breaks: PooledBreaks) -> Path:
    return breaks.study.folder.parents[1]


def failed(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))}"
