"""The `zslx` command. Each subcommand's module is imported when it is asked for, so that --help is instant."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from zslx.printable import one_line

# name: (module with add_arguments and run, help). Modules outside zslx are named here and nowhere else.
COMMANDS = {
    "sweep": ("sweeps.arguments", "compare interventions with the baseline over sizes and seeds"),
    "dashboard": ("sweeps.dashboard", "show the searches of a results folder in Optuna's dashboard"),
    "train": ("zslx.commands.train", "train one run, or go on with it"),
    "fit": ("zslx.commands.fit", "fit loss deceleration (L_d, t_d, r_d) to loss curves"),
    "probe": ("zslx.commands.probe", "measure interference on the checkpoints of finished runs"),
    "evaluate": ("zslx.commands.evaluate", "score checkpoints on tasks of lm-evaluation-harness"),
    "export": ("zslx.commands.export", "write a run's model as a folder that transformers loads"),
    "compare": ("analysis.commands.compare", "print the comparison table of a results folder"),
    "report": ("analysis.commands.report", "rebuild table and HTML report from the records alone"),
    "figures": ("analysis.commands.figures", "draw the report's figures for print"),
    "import": ("analysis.commands.import_curves", "put loss curves of other people's runs beside a study"),
    "archive": ("analysis.commands.archive", "write a study as one file that others can verify"),
    "verify": ("analysis.commands.verify", "check an archive: every number, from its records"),
    "leaderboard": ("analysis.commands.leaderboard", "build the leaderboard from archives of studies"),
    "interventions": ("zslx.commands.interventions", "list, show, write, check and time interventions"),
    "data": ("zslx.commands.data", "prepare texts and data sets, and show what is prepared"),
    "presets": ("zslx.commands.presets", "list the presets and model sizes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; user errors are one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="zslx",
        description="Can a training method relieve zero-sum learning without scale? Train, measure, compare.",
        epilog="zslx COMMAND --help explains a command. Start with: zslx sweep pcgrad --preset smoke",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((a for a in argv if not a.startswith("-")), None)
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == asked:
            try:
                _import(module).add_arguments(sub)
            except ValueError as error:
                return fail(error)
    args = parser.parse_args(argv)
    if args.version:
        import zslx

        print(zslx.__version__)
        return 0
    if not args.command:
        parser.print_help()
        return 0
    return guarded(COMMANDS[args.command][0], args)


def guarded(module: str, args: argparse.Namespace) -> int:
    """Run a command's module; what a user can mend is one line, a broken pipe is silent.

    SIGTERM ends a command as Ctrl-C does, and the exit code says which of the two it was.
    """
    ended: list[int] = []

    def terminate(number: int, frame: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = int(_import(module).run(args) or 0)
        return 128 + ended[0] if ended else code  # a sweep tells by itself what it kept
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nzslx: stopped; the same command goes on where this one was", file=sys.stderr)
        return 128 + ended[0] if ended else 130
    except (ValueError, OSError) as error:
        return fail(error)
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(error: Exception) -> int:
    if os.environ.get("ZSLX_DEBUG"):
        raise error
    text = str(error) or type(error).__name__
    print(f"zslx: error: {one_line(text)}", file=sys.stderr)
    return 2


def _import(module: str) -> ModuleType:
    package = module.partition(".")[0]
    if package != "zslx":
        from zslx.places import ours

        ours(package)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("zslx", "sweeps", "analysis", "interventions"):
            raise
        raise ValueError(f"this command needs the package {error.name!r}: pip install 'zslx[sweep]'") from error


if __name__ == "__main__":
    sys.exit(main())
