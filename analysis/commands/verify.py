"""`zslx verify ARCHIVE`: whether what an archive claims follows from the records in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from zslx.printable import one_line, printable

MOST_LINES = 20  # of faults of one check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Check an archive that zslx archive wrote: the checksum of each file, that the identity of each trial follows\n"
        "from what was hashed and fits its arm and size, that none is missing, that records are whole, that sources\n"
        "are those that were hashed, and every number and word of the comparison, computed from the records again.\n"
        "Nothing of the archive is executed.\n\n"
        "exit codes: 0 all agrees, 1 something differs, 2 no archive that can be unpacked"
    )
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="the zip file")
    what = "largest difference of a number, relative to it if it is above 1: another machine rounds differently (1e-9)"
    parser.add_argument("--tolerance", type=float, default=1e-9, metavar="X", help=what)


def run(args: argparse.Namespace) -> int:
    """Print a line a check, and what is wrong under it."""
    from analysis.archive.verify import verify
    from analysis.commands.compare import show_progress

    if not 0 <= args.tolerance < 1:
        raise ValueError(f"--tolerance {args.tolerance:g}: allowed are numbers from 0 to 1")
    wrong = 0
    for check in verify(args.archive, args.tolerance, show_progress()):
        print(f"{'differs' if check.faults else 'ok':8}{check.name:10} {one_line(check.found)}", flush=True)
        for line in check.faults[:MOST_LINES]:
            print(f"{'':8}{printable(line, 300)}")
        if len(check.faults) > MOST_LINES:
            print(f"{'':8}and {len(check.faults) - MOST_LINES} more")
        wrong += len(check.faults)
    print(f"{args.archive}: {f'{wrong} things differ' if wrong else 'verified'}")
    return 1 if wrong else 0
