"""One run in wandb. `step` is every metric's axis, and wandb's own step, too, so that no row can be there twice.

Nothing about the machine is logged but the kind of its processor: no code, git state, host, user, paths, packages or
system metrics. Keys come from wandb's own environment variables. The default workspace shows the metrics in SHOWN and
hides the others, which can still be added to a panel.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zslx.printable import one_line
from zslx.tracking.rows import Row

PROJECT = "zslx"
START_LIMIT = 30.0  # seconds until wandb is taken to be out of reach
SHOWN = (
    *("loss", "lr", "grad_norm", "clipped", "tokens", "seconds"),
    *("probe/heldout_loss", "probe/update_norm"),
    *("probe/dt1_heldout/D", "probe/dt1_heldout/M", "probe/dtt/D", "probe/dtt/M"),
    *("probe/grad_sequence/ratio", "probe/grad_sequence/chance_ratio"),
    *("probe/grad_token/ratio", "probe/grad_token/chance_ratio"),
    *("probe/first_order/C_g", "probe/decomposition/ee", "probe/decomposition/sa", "probe/decomposition/conf"),
)


def run_id(key: str) -> str:
    """The id of a run: it follows from what the run is of, so that it is found again."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def no_account() -> str:
    """Why nothing can be sent: no key in the environment or from `wandb login`, or no answer; empty where it can.

    Nobody is asked for a key.
    """
    import wandb

    try:
        return "" if wandb.login(prompt=False) else "no account here; WANDB_API_KEY or `wandb login` gives one"
    except Exception as error:  # of the network, or a key that is none
        return one_line(f"{type(error).__name__}: {error}")


class WandbRun:
    """An open run with the id `identifier`; its files lie under `root`/wandb. Raises whatever wandb raises.

    Online, a run that is there already goes on; `first` is the first step that it lacks. `shown`: what the default
    workspace shows of it. Files that others have left of the same run are removed, when it begins and when it ends: a
    process that was killed, or a start that took too long and was given up. Synced, they would be there twice.
    """

    def __init__(
        self,
        identifier: str,
        root: Path,
        mode: str,
        config: Mapping[str, Any],
        shown: Sequence[str] = SHOWN,
        **names: Any,
    ):
        remove_others(root / "wandb", identifier)
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)
        self.run = wandb.init(
            project=PROJECT,
            id=identifier,
            config=dict(config),
            dir=str(root),
            reinit="create_new",
            resume="allow" if mode == "online" else None,
            allow_val_change=True,  # a run that goes on may have other versions
            settings=settings(wandb, mode, root),
            **names,
        )
        self.first = self.run.step if self.run.resumed else 0
        self.run.define_metric("step", hidden=True)
        for name in shown:
            self.run.define_metric(name, step_metric="step")
        self.run.define_metric("*", step_metric="step", hidden=True)

    def write(self, rows: Iterable[Row]) -> None:
        """Log rows whose steps increase; those that the run has are left out."""
        for row in rows:
            step = int(row["step"])
            if step >= self.first:
                self.run.log(row, step=step)
                self.first = step + 1

    def close(self, summary: Mapping[str, Any] | None = None, *, ok: bool) -> None:
        """End the run."""
        # The folder ends in files/; its sibling logs/ names paths of this machine and is not for syncing.
        folder = Path(self.run.dir).parent
        try:
            if summary:
                self.run.summary.update(dict(summary))
        finally:
            self.run.finish(exit_code=0 if ok else 1)
            for name in ("logs", "tmp"):
                shutil.rmtree(folder / name, ignore_errors=True)
            remove_others(folder.parent, self.run.id, folder.name)


def settings(wandb: Any, mode: str, root: Path) -> Any:
    return wandb.Settings(
        mode=mode,
        root_dir=str(root),
        init_timeout=START_LIMIT,
        silent=True,
        quiet=True,
        console="off",
        symlink=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        host="",
        program="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def remove_others(folder: Path, identifier: str, kept: str = "") -> None:
    """Remove the files of a run, but those in the folder `kept`."""
    for found in folder.glob(f"*run-*-{identifier}"):
        if found.name != kept:
            shutil.rmtree(found, ignore_errors=True)
