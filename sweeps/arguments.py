"""The arguments of `zslx sweep`. They import nothing heavy, so that `zslx sweep --help` is instant."""

from __future__ import annotations

import argparse
from pathlib import Path

from zslx.config.presets import PRESETS
from zslx.tracking import MODES

DESCRIPTION = """\
Compare interventions with the baseline: arms × sizes × seeds, then the table and the report.

examples:
  zslx sweep pcgrad
  zslx sweep pcgrad --preset smoke
  zslx sweep pcgrad,ema --sizes '0.1M 0.2M' --seeds 5 --set 'pcgrad.groups=domain optim.lr=1e-3'
  zslx sweep focal --set 'focal.gamma=0.5,1,2'     one arm for each value
  zslx sweep pcgrad --preset verdict --dry-run
  zslx sweep pcgrad --seeds 6 --write-study mine.toml && zslx sweep mine.toml

An interrupted sweep goes on when the same command is given again; no trial is trained twice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    what = "a name, a+b for both at once, a,b to compare; or a study file, such as verdict.toml (sweeps/study_file.py)"
    parser.add_argument("intervention", metavar="INTERVENTION", help=what)
    presets = ", ".join(f"{name} ({preset.help})" for name, preset in PRESETS.items())
    parser.add_argument("--preset", help=f"{presets}; default: laptop")
    parser.add_argument("--results", type=folder, default=Path("results"), help="folder of trials and reports")
    parser.add_argument("--sizes", default="", help="model sizes, as '0.1M 0.2M' (zslx presets lists them)")
    parser.add_argument("--seeds", default="", help="how many (3) or which ones ('0 1 2')")
    parser.add_argument("--steps", type=int, help="optimizer steps of each trial")
    settings = "settings, as 'pcgrad.groups=domain optim.lr=1e-3'; 'focal.gamma=1,2' makes one arm for each value"
    parser.add_argument("--set", default=[], type=str.split, metavar="K=V", help=settings)
    parser.add_argument(
        "--wandb", default="offline", choices=MODES, help="wandb's mode (default: offline); it never asks"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write event files, into RESULTS/tensorboard")
    parser.add_argument("--slots", type=int, help="trials at a time (default: one per core)")
    parser.add_argument(
        "--pack",
        default="auto",
        help="small trials that train together as one process on a GPU: auto, off, or how many (default: auto)",
    )
    parser.add_argument(
        "--tune-rate", action="store_true", help="first tune the learning rate of each arm and size, on other seeds"
    )
    looks = "decided: judge after half and three quarters of the seeds, too, and stop when every answer is clear"
    settled = "settled: also stop when the remaining seeds would hardly give one"
    parser.add_argument("--until", choices=("decided", "settled"), help=f"{looks}; {settled}")
    parser.add_argument(
        "--write-study", type=Path, metavar="FILE", help="write this command as a study file; train nothing"
    )
    parser.set_defaults(contrasts={}, curve="", file="")  # a study file alone can say these
    parser.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="first search each arm's settings and rate with Optuna: N points per arm, smallest size, other seeds",
    )
    halving = "with --search: stop the worse half of the points at a quarter of their steps, and again at a half (ASHA)"
    parser.add_argument("--halving", action="store_true", help=halving)
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and how long it would take")


def folder(text: str) -> Path:
    """The results folder. Records are appended, renamed and locked, which an object store cannot do."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"RESULTS={text}: allowed is a folder of a file system that appends, renames and locks (on a cluster one "
            "that every node sees, as NFS or Lustre); copy it to a store when the sweep is done"
        )
    return Path(text)


def run(args: argparse.Namespace) -> int:
    from sweeps import commands  # imports torch

    return commands.run(args)
