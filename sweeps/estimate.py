"""How long trials take: from earlier timings in RESULTS, else from a quick measurement of each size.

    trial ≈ (steps left) × (seconds a step),   round ≈ max(Σ trials / slots, longest trial),   study ≈ Σ rounds + START

Seconds a step of an arm at a size: the median of earlier trials of the same model, batch, device and intervention;
else the plain step of that model (earlier, or measured here on random tokens) times UNKNOWN_COST where there is an
intervention. While a sweep runs, the trials' own rates replace these (sweeps/progress.py). An estimate, good to about
a third: instruments are in it at their usual share.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.packing import on_gpu
from sweeps.planned import PlannedTrial, folder
from zslx.config.run_config import Config
from zslx.config.spec import BASELINE
from zslx.runs.json_files import last_line
from zslx.runs.records import read_config, read_manifest

START = 8.0  # seconds: Ray, imports in the workers, the analysis
UNKNOWN_COST = 1.4  # of a step with an intervention that was never timed here, relative to the plain one
PACK_GAIN = 20.0  # of a step in a pack on a GPU that was never timed here
INSTRUMENTS = 1.15  # a trial's time relative to its training alone
NEWEST = 400  # trials in RESULTS whose timings are read
MEASURED_TOKENS = 4096  # of a batch, where there are no timings
LONG_STEP = 2.0  # seconds


@dataclass(frozen=True)
class Estimate:
    """Seconds a step by (arm, size), where they come from, and the steps that trials, by key, have behind them."""

    rates: dict[tuple[str, str], float]
    source: str
    begun: dict[str, int] = field(default_factory=dict)

    def seconds(self, trial: PlannedTrial) -> float:
        return max(0, trial.steps - self.begun.get(trial.key, 0)) * self.rates[trial.arm, trial.size]


def estimate(
    trials: Iterable[PlannedTrial], results: Path, measure: Callable[[Config], float] | None = None
) -> Estimate:
    """Estimated rates for each arm and size among `trials`."""
    known = earlier(results)
    rates: dict[tuple[str, str], float] = {}
    plain: dict[str, float] = {}
    begun: dict[str, int] = {}
    measured = False
    trials = list(trials)
    for trial in trials:
        if step := last_line(folder(results, trial.key) / "steps.jsonl").get("step"):
            begun[trial.key] = int(step)
    for trial in sorted(trials, key=lambda t: t.config.intervention != BASELINE):
        where = (trial.arm, trial.size)
        if where in rates:
            continue
        kind = workload(trial.config, trial.packed)
        if (kind, trial.config.intervention) in known:
            rates[where] = known[kind, trial.config.intervention]
            continue
        if kind not in plain:
            measured |= (kind, BASELINE) not in known
            gain = PACK_GAIN if trial.packed and on_gpu(trial.config) else 1.0
            plain[kind] = known.get((kind, BASELINE)) or (measure or step_seconds)(trial.config) * INSTRUMENTS / gain
        rates[where] = plain[kind] * (1.0 if trial.config.intervention == BASELINE else UNKNOWN_COST)
    source = "a quick measurement of each size" if measured else f"earlier trials in {results}"
    return Estimate(rates, source, begun)


def study_seconds(rounds: Iterable[Iterable[float]], slots: int) -> float:
    """Wall time of trials that take so long, `slots` at a time, one round after the other."""
    every = [list(seconds) for seconds in rounds]
    return sum(max(sum(some) / slots, max(some)) for some in every if some) + (START if any(every) else 0.0)


def workload(config: Config, packed: bool) -> str:
    """What decides the time of a plain step."""
    values = config.to_dict()
    train = values["train"]
    parts = [values["model"], values["data"]["batch_size"], values["data"]["seq_len"], config.run.workers]
    return json.dumps([*parts, train["device"], train["dtype"], train["threads"], packed], sort_keys=True)


def earlier(results: Path) -> dict[tuple[str, str], float]:
    """Median seconds a step of the newest finished trials, by workload and intervention."""
    found: dict[tuple[str, str], list[float]] = {}
    paths = results.glob("trials/*/manifest.json")
    for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)[:NEWEST]:
        try:
            manifest = read_manifest(path.parent)
            totals = manifest.get("totals", {})
            if manifest["status"] != "finished" or not (totals.get("steps") and totals.get("seconds")):
                continue
            config = Config.from_dict(read_config(path.parent))
        except (ValueError, OSError):
            continue
        packed = bool(manifest.get("ingredients", {}).get("packed"))
        found.setdefault((workload(config, packed), config.intervention), []).append(
            totals["seconds"] / totals["steps"]
        )
    return {key: statistics.median(values) for key, values in found.items()}


def step_seconds(config: Config) -> float:
    """Seconds of one plain forward, backward and update of this model on random tokens, on this machine.

    Of a large batch a part is measured and the time scaled by its tokens; a step that takes long is taken once.
    """
    import torch

    from zslx.model.transformer import build_model
    from zslx.runs.identity import device_kind

    device = device_kind(config).split()[0]
    draws = torch.Generator().manual_seed(0)
    rows = config.model.vocab_size or config.data.vocab_size
    model = build_model(dataclasses.replace(config), rows, draws).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    sequences = min(config.data.batch_size, max(1, MEASURED_TOKENS // config.data.seq_len))
    tokens = torch.randint(rows, (sequences, config.data.seq_len), generator=draws).to(device)
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(config.train.threads)
    try:
        for _ in range(4):
            start = time.perf_counter()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if times[-1] > LONG_STEP:
                break
    finally:
        torch.set_num_threads(before)
    return statistics.median(times[1:] or times) * config.data.batch_size / sequences
