"""`zslx figures RESULTS`: the figures of the report as files for print."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.report.print_figures import FORMATS, inches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis.commands.compare import add_studies

    add_studies(parser)
    parser.add_argument("--format", choices=FORMATS, default="pdf", help="of the files (default: pdf)")
    parser.add_argument("--width", default="3.3in", help="of each figure: 3.3in, 84mm, 240pt (default: 3.3in)")
    parser.add_argument("--out", type=Path, help="the folder to write to (default: RESULTS/<study>-figures)")


def run(args: argparse.Namespace) -> int:
    """Write the figures; the path of each is a line."""
    from analysis.commands.compare import load_fitted
    from analysis.commands.report import WIDTH
    from analysis.inference.compare import compare_study
    from analysis.report.blocks import Figure
    from analysis.report.print_figures import save_all
    from analysis.report.report import blocks
    from zslx.slug import slug

    width = inches(args.width)
    breaks = load_fitted(args)
    comparison = compare_study(breaks)
    folder = args.out or breaks.study.folder.parents[1] / f"{slug(comparison['study'], WIDTH)}-figures"
    figures = [block for block in blocks(breaks, comparison) if isinstance(block, Figure)]
    for path in save_all(figures, folder, kind=args.format, width=width):
        print(path.resolve(), flush=True)
    return 0
