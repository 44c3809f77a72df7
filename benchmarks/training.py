"""Throughput of the platform's plain step beside the same model in a bare loop, and what kept memory gives.

    python -m benchmarks.training [--sizes 0.1M 0.4M] [--json]

`platform` is `TrainingRun.step`: data, gradient, clipping, optimizer, records, checks. `bare` is the same model,
batches and optimizer in a loop of six lines. Both take turns, a block of steps each, in one process at one
thread; the figure is the median of the blocks' ratios (bare time over platform time: 1 is no cost).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from zslx.config.presets import preset
from zslx.config.run_config import Config, parse_overrides
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun

BLOCKS, STEPS = 15, 20


def measure(size: str) -> dict[str, float]:
    """Tokens per second of both, and the ratio."""
    config = parse_overrides(
        preset("laptop").for_size(size), ["instruments.probes=false", "instruments.heldout_points=2"]
    )
    with tempfile.TemporaryDirectory() as folder:
        platform, bare = TrainingRun(config, Path(folder)), Bare(config, Path(folder))
        clock = Clock(platform.records)
        times: dict[str, list[float]] = {"platform": [], "bare": []}
        step = 0
        for block in range(BLOCKS + 1):
            for name in ("platform", "bare") if block % 2 else ("bare", "platform"):
                start = time.perf_counter()
                for i in range(STEPS):
                    # Not step 1, 2, ...: those are steps of the instruments.
                    if name == "platform":
                        platform.step(step + i + 10**6, clock)
                    else:
                        bare.step(step + i + 10**6)
                if block:  # the first warms up
                    times[name].append(time.perf_counter() - start)
            step += STEPS
        platform.records.close()
    tokens = STEPS * config.data.batch_size * config.data.seq_len
    return {
        "platform_tokens_per_second": tokens / statistics.median(times["platform"]),
        "bare_tokens_per_second": tokens / statistics.median(times["bare"]),
        "ratio": statistics.median(b / p for b, p in zip(times["bare"], times["platform"], strict=True)),
    }


class Bare:
    """The same model, data and optimizer without the platform."""

    def __init__(self, config: Config, folder: Path):
        twin = TrainingRun(config, folder)
        self.model, self.loader, self.clip = twin.model, twin.loader, config.optim.clip
        self.optimizer = twin.optimizer

    def step(self, step: int) -> None:
        batch = self.loader.batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(batch.tokens).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.1M", "0.4M"])
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    args = parser.parse_args()
    results = {size: measure(size) for size in args.sizes}
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for size, r in results.items():
        print(
            f"{size}: platform {r['platform_tokens_per_second']:,.0f} tokens/s, bare "
            f"{r['bare_tokens_per_second']:,.0f}, ratio {r['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
