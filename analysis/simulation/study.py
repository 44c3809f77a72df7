"""Studies with a known truth, as record files: what the comparison is tested, calibrated and timed on.

Held-out loss of a trial at step t, with N non-embedding parameters and T steps:

    log L = log(c N^−β t^−c_0 (1 + (t/t_d)^{1/f})^{−c_1 f}) + seed(i) + path(t) + effect · ramp(t)

seed(i) is shared by all arms (pairing removes it), path is an AR(1) in log t drawn for each trial, and the
arm's effect on log L grows from 0 at t_d/4 to its full size at T. D and M rise and fall around t_d as
published curves do. Nothing here trains; every draw uses the generator handed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.inference.evidence import VERDICT_SEEDS
from analysis.study.arm import Arm, rate_factor
from analysis.study.declaration import Declaration, Entry
from zslx.config.presets import preset
from zslx.config.sizes import model_preset
from zslx.config.spec import Spec
from zslx.instruments.measuring_steps import token_steps
from zslx.runs.digest import hashed_settings
from zslx.runs.json_files import write_json
from zslx.runs.records import RunRecords

PROBE_STEPS = sorted({2**k for k in range(20)} | {3 * 2**k for k in range(19)})
ENVIRONMENT: dict[str, dict[str, Any]] = {
    "ingredients": {"numerics": 1, "torch": "2.13.0", "device": "cpu", "corpus": "simulated"},
    "versions": {"zslx": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    "hardware": {"machine": "x86_64", "processor": "simulated", "cores": 2, "threads": 1, "gpu": None},
}


@dataclass(frozen=True, kw_only=True)
class SimulatedArm:
    """An arm and its true effects, all 0 by default."""

    name: str
    intervention: str = "none"
    role: str = "arm"
    of: str | None = None
    effect: float = 0.0  # on log held-out loss at T
    slope: float = 0.0  # on r_d
    interference: float = 0.0  # on D
    cost: float = 1.0  # step time over the baseline's
    steps: float = 1.0  # planned steps over the baseline's
    expense: float = 0.0  # on log held-out loss of code, and as much less on that of prose
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_placebo: bool = True


BASELINE = SimulatedArm(name="baseline", role="baseline")
RATES = (  # the baseline at half and at twice its learning rate
    SimulatedArm(name="rate:0.5", role="control", effect=0.02),
    SimulatedArm(name="rate:2", role="control", effect=0.01),
)
ARMS = (
    BASELINE,
    SimulatedArm(name="cosine", intervention="cosine", role="control", effect=-0.01),
    SimulatedArm(
        name="pcgrad",
        intervention="pcgrad",
        effect=-0.03,
        slope=0.01,
        interference=-0.02,
        cost=1.31,
        metrics={"pcgrad/negative_share": 0.42},
    ),
    SimulatedArm(
        name="placebo:pcgrad",
        intervention="placebo:pcgrad",
        role="placebo",
        of="pcgrad",
        cost=1.31,
        effect=-0.004,
    ),
    SimulatedArm(
        name="pcgrad+cosine",
        intervention="pcgrad+cosine",
        effect=-0.035,
        cost=1.32,
        role="control",
        of="pcgrad",
    ),
)


def write_study(
    results: str | Path,
    generator: np.random.Generator,
    *,
    name: str = "simulated",
    arms: Sequence[SimulatedArm] = ARMS,
    sizes: Sequence[str] = ("0.1M", "0.2M", "0.4M"),
    seeds: int = 10,
    steps: int = 1200,
    noise: float = 0.002,
    faults: Mapping[tuple[str, str, int], str] | None = None,
    instruments: bool = True,
    step_lines: bool = True,
    created: str = "2026-01-01T00:00:00Z",
    tuning: Mapping[str, Any] | None = None,
) -> Path:
    """A results folder with one study; returns `results`.

    noise: sd of a trial's own log loss at T; faults: (arm, size, seed) → diverged, failed (no folder), torn
    (killed while writing), damaged, missing (not in the study).
    """
    results = Path(results)
    trials = []
    for size in sizes:
        for seed in range(seeds):
            shared = generator.normal(0, 0.005)
            for arm in arms:
                fault = (faults or {}).get((arm.name, size, seed), "")
                if fault == "missing":
                    continue
                identity = generator.bytes(8).hex()
                status = fault if fault in ("diverged", "failed") else "finished"
                error = "RuntimeError: out of memory" if fault == "failed" else ""
                entry = Entry(arm=arm.name, size=size, seed=seed, identity=identity, status=status, error=error)
                trials.append(entry)
                if fault != "failed":
                    trial = _Trial(arm=arm, size=size, seed=seed, identity=identity, steps=int(steps * arm.steps))
                    folder = results / "trials" / identity
                    trial.write(folder, generator, shared, noise, fault, instruments, step_lines)
    declared = Declaration(
        name=name,
        preset="simulated",
        created=created,
        arms=tuple(
            Arm(name=a.name, intervention=a.intervention, role=a.role, of=a.of, has_placebo=a.has_placebo) for a in arms
        ),
        sizes=tuple(sizes),
        seeds=tuple(range(seeds)),
        trials=tuple(trials),
        command="make sweep INTERVENTION=pcgrad",
        verdict_command="make sweep INTERVENTION=pcgrad PRESET=verdict",
        exploratory=seeds < VERDICT_SEEDS,
        tuning=tuning,
    )
    declared.write(results / "studies" / f"study-{len(list(results.glob('studies/*')))}")
    return results


def non_embedding(size: str) -> int:
    """Parameters of a named size without the embedding."""
    return model_preset(size).parameters().non_embedding


@dataclass(frozen=True, kw_only=True)
class _Trial:
    arm: SimulatedArm
    size: str
    seed: int
    identity: str
    steps: int

    def write(
        self,
        folder: Path,
        generator: np.random.Generator,
        shared: float,
        noise: float,
        fault: str,
        instruments: bool,
        step_lines: bool,
    ) -> None:
        config = preset("laptop").for_size(self.size).to_dict()
        config["intervention"] = self.arm.intervention
        config["train"] |= {"steps": self.steps, "seed": self.seed}
        config["optim"]["lr"] *= rate_factor(self.arm.name) or 1
        tokens = config["data"]["batch_size"] * config["data"]["seq_len"]
        end = self.steps // 3 if fault == "diverged" else self.steps
        t = np.arange(1, end + 1)
        loss = np.exp(self._log_loss(t) + shared + self._path(t, generator, noise))
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config)
        with RunRecords(folder) as records:
            if step_lines:
                self._write_steps(records, t, loss, tokens, generator)
            if fault == "diverged":
                why = f"the loss is not finite at step {end + 1}"
                records.append_step({"step": end + 1, "tokens": end * tokens, "loss": None, "diverged": why})
            points = np.unique(np.geomspace(1, self.steps, 100).astype(int))
            for step in sorted({0, *points[points <= end], *(s for s in PROBE_STEPS if s <= end), end}):
                value = math.log(2048) if step == 0 else loss[step - 1]
                line: dict[str, Any] = {
                    "step": int(step),
                    "tokens": int(step) * tokens,
                    "heldout_loss": value,
                }
                moved = math.exp(self.arm.expense if step else 0)
                line["heldout_by_domain"] = {"code": value * 0.9 * moved, "prose": value * 1.1 / moved}
                line["heldout_by_frequency"] = {str(i): value * (0.4 + 0.4 * i) for i in range(4)}
                if instruments and step in PROBE_STEPS:
                    line |= self._instruments(step, loss, generator)
                records.append_probe(line)
            seconds = 0.01 * self.arm.cost * float(np.exp(generator.normal(0, 0.02)))
            spent = {"seconds": end * seconds, "instrument_seconds": end * seconds * 0.1}
            records.append_timing({"step": end, "steps": end, **spent, "step_seconds": seconds})
        status = fault if fault == "diverged" else "finished"
        methods = map(str, Spec.parse(self.arm.intervention).parts)
        settings: dict[str, dict[str, Any]] = {name: {} for name in methods if name != BASELINE.intervention}
        hashed = {"config": hashed_settings(config) | {"settings": settings}}
        manifest = {
            "status": status,
            "identity": self.identity,
            **ENVIRONMENT,
            "ingredients": {**ENVIRONMENT["ingredients"], **hashed},
            "totals": {
                "steps": end,
                "tokens": end * tokens,
                "seconds": end * seconds * 1.1,
                "train_seconds": end * seconds,
                "instrument_seconds": end * seconds * 0.1,
                "median_step_seconds": seconds,
            },
        }
        write_json(folder / "manifest.json", manifest)
        if fault == "torn":
            with (folder / "probes.jsonl").open("ab") as file:
                file.write(b'{"step": 999999, "heldo')
        if fault == "damaged":
            (folder / "probes.jsonl").write_bytes(b'{"step": 1, \x00\n{"step": 2}\n')

    @property
    def break_step(self) -> float:
        return self.steps / 6

    def _log_loss(self, t: np.ndarray) -> np.ndarray:
        td, sharpness, c0, rd = self.break_step, 0.3, 0.2, 0.05 + self.arm.slope
        bend = -(rd - c0) * sharpness * np.log1p((t / td) ** (1 / sharpness))
        ramp = np.clip(np.log(4 * t / td) / math.log(4 * self.steps / td), 0, 1)
        # The slope's own effect is set to nothing at T, so that `effect` is the whole effect there.
        free = self.arm.effect + self.arm.slope * math.log(self.steps / td)
        return math.log(16) - 0.06 * math.log(non_embedding(self.size) / 1e4) - c0 * np.log(t) + bend + free * ramp

    def _path(self, t: np.ndarray, generator: np.random.Generator, noise: float) -> np.ndarray:
        """AR(1) over 200 knots in log t, sd `noise`."""
        knots = np.geomspace(1, self.steps, 200)
        shocks = generator.normal(0, noise * math.sqrt(1 - 0.95**2), 200)
        walk = np.empty(200)
        walk[0] = generator.normal(0, noise)
        for k in range(1, 200):
            walk[k] = 0.95 * walk[k - 1] + shocks[k]
        return np.interp(np.log(t), np.log(knots), walk)

    def _write_steps(
        self,
        records: RunRecords,
        t: np.ndarray,
        loss: np.ndarray,
        tokens: int,
        generator: np.random.Generator,
    ) -> None:
        noisy = (loss * np.exp(generator.normal(0, 0.02, len(t)))).tolist()
        norms = np.exp(generator.normal(-1, 0.3, len(t))).tolist()
        for step, value, norm in zip(t.tolist(), noisy, norms, strict=True):
            line: dict[str, float] = {
                "step": step,
                "tokens": step * tokens,
                "loss": value,
                "lr": 0.003 * min(1.0, step / 100),
                "grad_norm": norm,
                "clipped": norm > 1,
            }
            records.append_step(line | dict(self.arm.metrics))

    def _instruments(self, step: int, loss: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
        def dm(rise: float, magnitude: float) -> dict[str, Any]:
            depth = 1 / (1 + (self.break_step / step) ** 1.5)
            d = 0.15 + 0.82 * depth * rise + self.arm.interference * depth + generator.normal(0, 0.01)
            d = float(np.clip(d, 0, 1))
            m = magnitude * step**-0.3 * float(np.exp(generator.normal(0, 0.02)))
            change = -m * (1 - d)
            # Code moves by 3/2 of the mean and prose by 1/2: none at the other's expense.
            by_domain = {
                "names": ["code", "prose"],
                "within": [d, d],
                "between": [[d, d], [d, d]],
                "shift": [1.5 * change, 0.5 * change],
                "between_share": 0.0,
            }
            return {"D": d, "M": m, "dL": change, "n": 6144, "by_domain": by_domain}

        depth = 1 / (1 + (self.break_step / step) ** 0.5)
        ratio = 0.55 + 0.2 * depth + 0.5 * self.arm.interference * depth + float(generator.normal(0, 0.005))
        found: dict[str, Any] = {
            "update_norm": 0.004,
            "dt1_batch": {key: value for key, value in dm(0.9, 0.9).items() if key != "by_domain"},
            "dt1_heldout": dm(1.0, 0.8),
            "grad_sequence": {
                "ratio": ratio + 0.08,
                "mean": ratio + 0.04,
                "n": 16,
                "chance_ratio": 0.84,
                "chance_mean": 0.81,
                "dead_share": 0.001,
                "negative_cosines": 0.42 * depth,
                "mean_cosine": 0.2 * (1 - depth),
                "by_group": {"all": {"ratio": ratio, "chance_ratio": 0.78}},
            },
        }
        if step in token_steps(len(loss)):
            found["grad_token"] = {"ratio": ratio + 0.1, "ratio_se": 0.004, "chance_ratio": 0.88, "n": 64}
            found["first_order"] = {"C_g": 0.4 * (1 - depth) + 0.02, "C_ug": 0.1, "C_uG": 0.3, "n": 64}
        ce = float(loss[step - 1])
        found["decomposition"] = {"ce": ce, "ee": 0.7 * ce, "sa": 0.1 * ce, "conf": -0.2 * ce, "n": 6144}
        if step % 2 == 0:
            found["dtt"] = {"from": step // 2} | dm(0.85, 1.5)
        return found
