"""Compares a method of one's own with the baseline, paired by seed.

    python examples/compare_a_method.py [FOLDER] [STEPS]

For controls, intervals and a report, put the class into plugins/ and give `make sweep INTERVENTION=rare`.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import zslx

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000


@dataclass(frozen=True)
class Rare(zslx.Intervention):
    """Weights each target token by its rarity to a power."""

    name = "rare"
    family = "token_weighting"
    neutral = {"power": 0.0}
    placebo = "tokens"

    power: float = zslx.setting(0.1, "exponent on 1 / the token's count", low=-1.0, high=1.0)

    def token_weights(self, run, view, state) -> torch.Tensor:
        return run.token_counts.to(view.targets.device)[view.targets].clamp(min=1).float() ** -self.power


for seed in range(3):
    config = zslx.preset("laptop").for_size("0.08M")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps, seed=seed))
    losses = []
    for name, method in (("baseline", None), ("rare", Rare())):
        run = folder / f"{name}-{seed}"
        zslx.train(config, run, intervention=method)
        losses.append(zslx.load_run(run).probes[-1]["heldout_loss"])
    print(f"seed {seed}: baseline {losses[0]:.4f}, rare {losses[1]:.4f}, {100 * (losses[1] / losses[0] - 1):+.2f} %")
