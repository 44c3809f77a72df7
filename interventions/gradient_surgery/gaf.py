"""Gradient agreement filtering: average in, one after the other, the group gradients that agree.

    c = e_1;  for k = 2..K:  if 1 − cos(Σ c_j g_j, g_k) ≤ τ:  c ← (c + e_k)/2;   none agreed: no step

Exact. Cost: nothing beside the Gramian. Oracle: the loop on full gradients (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import GramianMethod, RunView, State, setting


@dataclass(frozen=True)
class GAF(GramianMethod):
    """Leaves out group gradients too far (in cosine distance) from the running average; skips steps of discord.

    Weights: sum 1. The order of the groups matters: each that agrees halves the weight of all before it, as in
    the authors' code. With one group there is nothing to agree with and the step is taken. Meant for
    microbatches, which in language models agree after the first few hundred steps.
    """

    name = "gaf"
    source = "Chaubard et al. 2024, arXiv 2412.18052"
    cost = "Gramian; solver 0.7 ms at K=256"

    tau: float = setting(0.97, "largest cosine distance that counts as agreement", low=0.0, high=2.0)

    def init_groups(self, num_groups: int, generator: torch.Generator) -> State:
        return {"generator": generator, "agreed": 0, "skipped": 0}

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor | None:
        gram = gramian.numpy()
        norms = gramian.diagonal().sqrt().numpy()
        average = torch.eye(len(gram), dtype=torch.float64)[0].numpy()
        product = gram[0].copy()  # of the running average with every group gradient
        agreed = 0
        for k in range(1, len(gram)):
            scale = max(float(average @ product), 0.0) ** 0.5 * norms[k]
            cosine = product[k] / scale if scale > 0 else 0.0
            if 1 - cosine <= self.tau:
                average, product = average / 2, (product + gram[k]) / 2
                average[k] += 0.5
                agreed += 1
        skip = agreed == 0 and len(gram) > 1
        state["agreed"] = agreed
        state["skipped"] += int(skip)
        return None if skip else torch.from_numpy(average)

    def metrics(self, run: RunView, state: State) -> dict[str, float]:
        return {"agreed": state["agreed"], "skipped": state["skipped"]}
