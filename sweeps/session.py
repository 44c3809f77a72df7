"""A sweep from Python: a notebook, or a script that plans studies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.report.notebook import LoadedStudy
from analysis.study.load import load_study
from sweeps import commands
from sweeps.arguments import add_arguments
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.intervention.discovery import define

STOPPED = (130, 143)  # exit codes of the command


def sweep(
    *interventions: str | type[Intervention], options: Sequence[str] = (), results: str | Path = "results"
) -> LoadedStudy:
    """Compare interventions with the baseline, as `zslx sweep` does; returns the study as `load_study` does.

    interventions: specs as on the command line ("pcgrad", "pcgrad+cosine", "rate:0.5"), or classes, of which a notebook
    cell may be the only definition. options: of `zslx sweep`, as in ["--preset", "smoke", "--set", "mine.power=2"].

    Called again after an interruption it goes on; no trial is trained twice. ValueError for a mistake in what is asked.
    """
    for one in interventions:
        if isinstance(one, type) and registry.session_classes(one):
            define(one)
    names = ",".join(one if isinstance(one, str) else one.name for one in interventions)
    parser = argparse.ArgumentParser("zslx sweep", exit_on_error=False)
    add_arguments(parser)
    try:
        args = parser.parse_args([names, *options, "--results", str(results)])
    except (argparse.ArgumentError, SystemExit) as error:
        raise ValueError(f"options: {error}; see zslx sweep --help") from None
    planned = commands.planned(args)
    if isinstance(planned, int) or commands.start(planned, args) in STOPPED:
        raise KeyboardInterrupt("the sweep was stopped; the same call goes on")
    return LoadedStudy(load_study(results, planned.study.name))
