"""`zslx dashboard`: the searches of a results folder in Optuna's dashboard, on this machine alone."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from sweeps.search_storage import FILE, storage

HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the searches of a results folder (zslx sweep --search N) in Optuna's dashboard. It listens on 127.0.0.1 "
        "alone; Ctrl-C ends it. It reads a copy: nothing done there changes a sweep."
    )
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="folder of trials and reports")
    parser.add_argument("--port", type=int, default=8080, help="default: 8080")


def run(args: argparse.Namespace) -> int:
    path = args.results / FILE
    if not path.is_file():
        raise ValueError(f"{path}: there is no search in this folder yet; make sweep SEARCH=16 makes one")
    from optuna_dashboard import run_server

    print(f"Optuna's dashboard of {args.results}: http://{HOST}:{args.port}/ (Ctrl-C ends it)", flush=True)
    # At once: the server would take an exception in the middle of an answer for an error of that answer, and go on.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    run_server(storage(path), host=HOST, port=args.port)
    return 0
