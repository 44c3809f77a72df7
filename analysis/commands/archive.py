"""`zslx archive STUDY OUT.zip`: a study as one file, from which somebody else can compute its every number."""

from __future__ import annotations

import argparse
from pathlib import Path

from zslx.printable import one_line

MOST_NOTES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Write a study as one zip file: what it declares, settings, records and manifest of each trial, sources of\n"
        "interventions, the comparison, a checksum of each file. Checkpoints, host and user names and paths stay\n"
        "behind. zslx verify checks it; unzipped, it is a results folder.\n\n"
        "example:\n"
        "  zslx archive results study.zip\n"
        "  zslx verify study.zip"
    )
    what = "a results folder (its newest study), a study's folder or name"
    parser.add_argument("study", metavar="STUDY", help=what)
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; must not exist")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where names are looked up (results)")


def run(args: argparse.Namespace) -> int:
    """Write the archive; what stays behind is a line each."""
    from analysis.archive.write import archive
    from analysis.commands.compare import show_progress
    from analysis.study.load import place_of

    results, name = place_of(args.study, args.results)
    made = archive(results, name, args.out, show_progress())
    for note in made.notes[:MOST_NOTES]:
        print(f"note: {one_line(note)}")
    if (more := len(made.notes) - MOST_NOTES) > 0:
        print(f"note: and {more} more")
    print(f"{args.out}: {made.trials} trials, {made.files} files, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0
