"""`zslx leaderboard FOLDER`: the leaderboard's pages, from archives and entries in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGES = Path("docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Build the leaderboard: leaderboard.md and leaderboard.html. Each *.zip of the folder, as zslx archive writes\n"
        "it, is verified and becomes an entry, a small *.json beside it. The pages are made from all entries, also of\n"
        "archives that lie elsewhere. A study that departs from the protocol is listed apart, with the reason.\n\n"
        "example:\n"
        "  zslx archive results leaderboard/mine.zip\n"
        "  zslx leaderboard leaderboard --out docs"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where archives and entries lie")
    parser.add_argument("--out", type=Path, default=PAGES, metavar="FOLDER", help="where the pages go (docs)")


def run(args: argparse.Namespace) -> int:
    """Write both pages; their paths are the last lines."""
    from analysis.leaderboard.board import blocks
    from analysis.leaderboard.entries import update
    from analysis.report import markdown, page
    from analysis.report.blocks import Choices
    from zslx.runs.json_files import write_atomic

    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: no such folder")
    entries = update(args.folder)
    for entry in entries:
        apart = f"outside the protocol: {'; '.join(entry['departures'])}" if entry["departures"] else entry["scale"]
        print(f"{entry['archive']['file']}: {len(entry['rows'])} rows, {apart}"[:300])
    found = blocks(entries)
    args.out.mkdir(parents=True, exist_ok=True)
    made = {
        "md": markdown.render(found),
        "html": page.render(found, title="zslx: the leaderboard", choices=Choices(), made_from="archives that verify"),
    }
    for ending, text in made.items():
        path = args.out / f"leaderboard.{ending}"
        write_atomic(path, text.encode())
        print(path.resolve())
    return 0
