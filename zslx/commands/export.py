"""`zslx export RUN OUT`: a run's model as a folder that transformers loads."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Write the model of a run as a folder that transformers loads: config.json, model.safetensors, tokenizer.\n"
        "Its logits are those of the run's model. Where the method averages weights, they are the averaged ones, as\n"
        "in the held-out loss.\n\n"
        "example:\n"
        "  zslx export runs/one exported\n"
        "  python -c \"from transformers import pipeline; print(pipeline('text-generation', 'exported')('def '))\""
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint (the last)")
    parser.add_argument("--text", default="", metavar="PATH", help="where the text of the run lies now (data.path)")


def run(args: argparse.Namespace) -> int:
    from zslx.probing.probe import ProbeSettings, RunProbe

    if args.out.exists():
        raise ValueError(f"{args.out}: exists; give a folder that does not")
    probe = RunProbe(args.run, ProbeSettings(), args.text)
    step = probe.steps([args.step])[0] if args.step is not None else probe.available[-1]
    made, fast = probe.exported(step)
    temporary = args.out.with_name(f".{args.out.name}-{os.getpid()}")
    try:
        made.save_pretrained(temporary)
        fast.save_pretrained(temporary)
        os.rename(temporary, args.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{args.out}: {type(made).__name__}, step {step}")
    return 0
