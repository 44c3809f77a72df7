"""`zslx train`: one run, without Ray."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zslx.printable import printable
from zslx.tracking import MODES

if TYPE_CHECKING:
    from zslx.config.run_config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Train one run, or go on with it: the same command after an interruption resumes, bit for bit.\n\n"
        "examples:\n"
        "  zslx train smoke --out runs/first\n"
        "  zslx train laptop model=0.4M optim.lr=1e-3 train.seed=1 --out runs/second\n"
        "  zslx train laptop model=hf:gpt2 model.d_model=64 --out runs/gpt2\n"
        "  zslx train laptop intervention=pcgrad pcgrad.groups=domain --out runs/pcgrad\n"
        "  zslx train laptop run.workers=4 --out runs/four      # on four GPUs, or processes\n"
        "  torchrun --nproc-per-node 4 -m zslx train laptop --out runs/four\n\n"
        "zslx presets lists the presets and sizes; zslx train --keys lists every key."
    )
    parser.add_argument("arguments", nargs="*", metavar="[PRESET] key=value", help="a preset, then overrides")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument("--wandb", default="off", choices=MODES, help="log to wandb; online, while it trains")
    parser.add_argument("--tensorboard", action="store_true", help="write event files, into OUT/tensorboard")
    parser.add_argument("--keys", action="store_true", help="list every key, its default and its meaning")


def run(args: argparse.Namespace) -> int:
    from zslx.config.presets import preset
    from zslx.config.run_config import parse_overrides

    if args.keys:
        return print_keys()
    if args.out is None:
        raise ValueError("say where the run goes: --out DIR")
    items = list(args.arguments)
    name = items.pop(0) if items and "=" not in items[0] else "laptop"
    chosen = preset(name)
    config = parse_overrides(chosen.for_size(chosen.sizes[-1]), items)
    from zslx.distributed.group import called
    from zslx.distributed.launch import launch
    from zslx.distributed.train import train_on_ranks
    from zslx.training.train import train

    if called():
        if os.environ["RANK"] != "0":
            train_on_ranks(config, args.out)
            return 0
        return reported(config, args, train_on_ranks)
    return launch(config.run.workers, run, args) if config.run.workers > 1 else reported(config, args, train)


def reported(config: Config, args: argparse.Namespace, train: Callable[..., Any]) -> int:
    """Train, with progress and a word at the end; the exit code."""
    from zslx.progress import Progress
    from zslx.tracking.single import followed

    line = Progress("training")
    before = left_at(args.out)
    if before in ("running", "paused"):
        how = "paused" if before == "paused" else "stopped, killed, or ended by a plugin"
        print(
            f"{args.out}: begun before and not finished ({how}); it goes on from its last checkpoint",
            file=sys.stderr,
        )

    def progress(step: int, steps: int, loss: float) -> None:
        line.at(step / steps, "step", f" {step} of {steps}, loss {loss:.3f}")

    def say(text: str) -> None:
        print(printable(text), file=sys.stderr)

    with followed(args.out, args.wandb, args.tensorboard, say):
        outcome = train(config, args.out, progress=progress)
    if before == "finished":
        print(f"{args.out}: finished before; nothing to do", file=sys.stderr)
    else:
        line.done("done")
    if outcome["status"] == "diverged":
        print(f"zslx: the run diverged; see {args.out / 'steps.jsonl'}", file=sys.stderr)
        return 1
    totals = outcome["totals"]
    if outcome["status"] == "paused":
        at = f"step {totals['steps']} of {config.train.steps}"
        print(f"{args.out}: paused at {at} (run.until); the same command with a later one goes on", file=sys.stderr)
    print(f"{totals['steps']} steps, {totals['tokens']} tokens in {totals['train_seconds']:.1f} s of training")
    print(args.out)
    return 0


def left_at(out: Path) -> str:
    """The status in which an earlier command left the run in `out`; empty where there is none."""
    from zslx.runs.records import read_manifest
    from zslx.training.train import claimed

    if not (out / "manifest.json").exists():
        return ""
    with claimed(out):
        status: str = read_manifest(out)["status"]
    return status


def print_keys() -> int:
    """Every key with its default, its meaning and what is allowed."""
    import dataclasses

    from zslx.config.corpora import CORPORA
    from zslx.config.groups import GROUPS

    print("model=SIZE                     a named size (zslx presets)")
    print("model=hf:NAME                  a model of transformers: a type, or a folder with its config.json")
    print(f"data=NAME                      a named corpus of the hub: {', '.join(CORPORA)}")
    print("intervention=NAME[+NAME...]    zslx interventions list")
    print("reference=RUN                  run folder of the reference model, for methods that need one")
    for head, group in GROUPS.items():
        for f in dataclasses.fields(group):  # type: ignore[arg-type]
            m = f.metadata
            allowed = f"  [{', '.join(m['choices'])}]" if m.get("choices") else ""
            print(f"{head + '.' + f.name + '=' + str(f.default):30} {m['help']}{allowed}")
    return 0
