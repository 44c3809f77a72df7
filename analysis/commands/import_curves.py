"""`zslx import FILE ... --into STUDY`: loss curves of other people's runs as arms that are not compared."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Put loss curves of other people's runs beside a study. Each is fitted, drawn and listed as an arm of its\n"
        "own: L_d, t_d and r_d with the intervals of its fit. It shares neither seeds nor data with the trials, so\n"
        "its answer is always: not compared: no paired seeds.\n\n"
        "a FILE is one of these:\n"
        "  CSV or JSON lines     columns step and loss; --columns names others\n"
        "  a chart from wandb    exported as CSV: one curve a run\n"
        "  trainer_state.json    of Hugging Face's Trainer\n"
        "  TensorBoard           an event file, or a folder of them; --columns step,TAG names the scalar\n"
        "  a run folder          of zslx train\n\n"
        "example:\n"
        "  zslx import trainer_state.json --into results --name llama-finetune\n"
        "  zslx import events/ --into results --columns step,train/loss && zslx report results"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="loss curves, in nats per token")
    what = "a results folder (its newest study), a study's folder or name"
    parser.add_argument("--into", required=True, metavar="STUDY", help=what)
    parser.add_argument("--name", help="of the arm, where there is one curve (default: that of the file or its folder)")
    parser.add_argument("--columns", default="step,loss", metavar="STEP,LOSS", help="which two to read (step,loss)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where names are looked up (results)")


def run(args: argparse.Namespace) -> int:
    """Read every curve before any is kept; a line each says what it came to."""
    from analysis.inference.imported_curves import imported_row
    from analysis.study.declaration import Declaration
    from analysis.study.imported import Imported, checked_name
    from analysis.study.load import find_study, place_of
    from zslx.deceleration.logged_curves import read_all
    from zslx.printable import printable

    step, comma, loss = args.columns.partition(",")
    if not (step.strip() and comma and loss.strip()):
        raise ValueError(f"--columns {args.columns!r}: two names with a comma between, such as step,loss")
    study = find_study(*place_of(args.into, args.results))
    arms = [arm.name for arm in Declaration.read(study).arms]
    found: dict[str, Imported] = {}
    for path in args.files:
        for name, curve in read_all(path, (step.strip(), loss.strip())).items():
            name = checked_name(args.name or name, arms)
            if name in found:
                raise ValueError(f"{path}: a second curve named {name!r}; import it by itself with another --name")
            found[name] = Imported(name=name, source=path.name, curve=curve)
    for one in found.values():
        print(printable(imported_row(one)["sentence"]))
        print(one.write(study))
    return 0
