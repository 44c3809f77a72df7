"""What a finished run came to: the last value of each probe, totals, and where its loss decelerates."""

from __future__ import annotations

import contextlib
from typing import Any

from zslx.config.groups import ModelConfig
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.loss_curve import curve
from zslx.deceleration.slopes import tail_slope
from zslx.runs.records import Run
from zslx.tracking.rows import leaves

ENVIRONMENT = ("numerics", "torch", "device", "corpus")  # of what an identity hashes: trials are compared within one


def summary(run: Run) -> dict[str, Any]:
    """The last value of every probe's number, totals, status and `measures`."""
    last = {f"probe/{key}": value for line in run.probes for key, value in leaves(line)}
    totals = {f"totals/{key}": value for key, value in run.manifest.get("totals", {}).items() if value is not None}
    return last | totals | measures(run) | {"status": run.status}


def measures(run: Run) -> dict[str, Any]:
    """L_d (nats), t_d (steps) and r_d of the held-out curve, where its break is identified, and the tail slope."""
    points = {p["step"]: p["heldout_loss"] for p in run.probes if p.get("heldout_loss")}
    warmup = (run.config.get("optim") or {}).get("warmup") or None
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # too few points
        heldout = curve(list(points), list(points.values()), warmup=warmup)
        result = fit(heldout, FitOptions(smoothing="none", bootstrap=0))
        found["deceleration"] = result.status
        found |= {name: v for name in ("L_d", "t_d", "r_d") if (v := getattr(result, name)) is not None}
        found["tail_slope"] = float(tail_slope(heldout)[0])
    return found


def about(run: Run) -> dict[str, Any]:
    """Settings and what the run was computed with, without what names a place on this machine."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in run.config.items()}
    data = config.get("data", {})
    data.pop("path", None)
    config.pop("reference", None)
    known = ("identity", "versions", "hardware", "revision")
    found = config | {key: run.manifest.get(key) for key in known}
    if "earlier" in run.manifest:
        found["earlier"] = run.manifest["earlier"]
    ingredients = run.manifest.get("ingredients") or {}
    found["environment"] = {key: ingredients[key] for key in ENVIRONMENT if key in ingredients}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found["parameters"] = ModelConfig(**run.config["model"]).parameters(int(data["vocab_size"]))._asdict()
    return found
