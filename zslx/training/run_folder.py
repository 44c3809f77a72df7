"""What a run folder holds, seen from a configuration that is to be trained in it.

A folder with nothing in it is free. One with the same run goes on, or is finished. One with a finished, shorter run of
the baseline at a constant rate goes on as well: losses and weights are those of the longer run, bitwise, and the
held-out curve keeps the points of the shorter one up to where that ended. Anything else is refused with the keys that
differ.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslx.config.run_config import Config
from zslx.runs.integrity import fault
from zslx.runs.json_files import dumps
from zslx.runs.records import OVER, read_config, read_manifest, read_run

ANOTHER = "holds a run of the same settings but another text, plugin source, version or machine: choose another folder"


def longer(out: Path, config: Config, parts: Mapping[str, Any]) -> int:
    """The last step of the finished run in `out` where `config` asks for more steps of the same; else 0.

    `parts` are the ingredients of the identity that `config` has here.

    ValueError where the longer run would differ from its first step on.
    """
    if not ((out / "config.json").exists() and (out / "manifest.json").exists()):
        return 0
    there = read_run(out)
    differing = _differing(there.config, config)
    ended = differing.get("train.steps")
    if list(differing) != ["train.steps"] or there.status != "finished":
        return 0
    if not isinstance(ended, int) or config.train.steps < ended:
        return 0
    if problem := fault(there):
        raise ValueError(f"{problem}; its numbers cannot be trusted: move the folder away")
    if config.optim.schedule != "constant":
        reason = f"optim.schedule={config.optim.schedule} depends on the number of steps"
    elif config.intervention != "none":
        reason = f"intervention={config.intervention} sees the number of steps"
    elif _without_steps(there.manifest.get("ingredients")) != _without_steps(parts):
        raise ValueError(f"{out} {ANOTHER}")
    else:
        return ended
    raise ValueError(f"{out} holds a run of {ended} steps, and {reason}: choose another folder")


def same_run(out: Path, config: Config, identity: str) -> None:
    """Refuse a folder that holds another run."""
    if not (out / "config.json").exists():
        return
    known, keys = read_manifest(out).get("identity"), set(_differing(read_config(out), config))
    if known == identity:
        # The same run in another place: the identity has what lies there. Other steps: its process died between the
        # manifest of the longer run and its config.json.
        keys -= {"reference", "model.hf", "train.steps"}
    if keys:
        raise ValueError(f"{out} holds a run with other settings ({', '.join(sorted(keys))}): choose another folder")
    if known not in (None, identity):
        raise ValueError(f"{out} {ANOTHER}")


def _without_steps(parts: Any) -> Any:
    """Ingredients as JSON has them, without the number of steps."""
    plain = json.loads(dumps(parts))
    if isinstance(plain, dict) and isinstance(plain.get("config"), dict):
        (plain["config"].get("train") or {}).pop("steps", None)
    return plain


def ended_run(out: Path) -> dict[str, Any] | None:
    """The manifest of the finished or diverged run in `out`; None where there is something left to train."""
    if not (out / "manifest.json").exists():
        return None
    there = read_run(out)
    if there.status not in OVER:
        return None
    problem = fault(there)
    if not problem:
        return there.manifest
    # Lost lines are trained again, from the last checkpoint that the records reach; a changed number is not to be told
    # from a true one.
    if not fault(dataclasses.replace(there, manifest=there.manifest | {"records": None})):
        raise ValueError(f"{problem}; its numbers cannot be trusted: move the folder away")
    return None


def went_on(out: Path) -> dict[str, int]:
    """{"continued_from": step} of a longer run that was interrupted; {} of any other."""
    step = read_manifest(out).get("continued_from")
    return {"continued_from": step} if isinstance(step, int) else {}


def trained_before(out: Path, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The environments (zslx/runs/provenance.py) other than `now` in which the run in `out` trained before: each once,
    the last one last."""
    manifest, found = read_manifest(out), []
    for there in (*manifest.get("earlier", []), manifest):
        own = {key: there[key] for key in now if key in there}
        if own and own != now and own not in found:
            found.append(own)
    return found


def _differing(there: dict[str, Any], config: Config) -> dict[str, Any]:
    """The keys whose values differ, but for those of `run`, with the value that the folder has."""
    kept, wanted = Config.from_dict(there).to_dict(), config.to_dict()
    found: dict[str, Any] = {}
    for group in wanted.keys() - {"run"}:
        mine, own = wanted[group], kept.get(group)
        if isinstance(mine, dict):
            found |= {f"{group}.{k}": (own or {}).get(k) for k in mine if (own or {}).get(k) != mine[k]}
        elif mine != own:
            found[group] = own
    return found
