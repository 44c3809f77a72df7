"""UniMax: equal shares of the domains, as long as no domain is read more than `epochs` times.

    domains in the order of their size:  U_d = min(left / domains left, epochs · n_d),  left ← left − U_d
    p_d = U_d / Σ U,   left at the start: the tokens of the whole run, n_d the training tokens of domain d

Exact. Cost: nothing. Oracle: closed form (tests/unit/test_exemplars.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class UniMax(Intervention):
    """Draws domains in equal shares, but a small one only as often as its text lasts.

    Acts on the mixture, the same way at every step: what a small domain cannot fill is shared by the larger ones. Where
    every domain is large enough for the run, the shares are equal, and the run is the baseline's up to the order of
    its domains. There is no placebo: its control is the baseline at other learning rates.
    """

    name = "unimax"
    family = "data_mixing"
    source = "Chung et al. 2023 (UniMax), arXiv 2304.09151, Algorithm 1"
    cost = "1.00"

    epochs: float = setting(1.0, "how often a domain may be read at most", low=1e-6, high=1e6, log=True)

    def mixture(self, run: RunView, state: State) -> list[float]:
        left = float(run.steps * run.batch_size * run.seq_len)
        budget = [0.0] * len(run.domain_tokens)
        order = sorted(range(len(budget)), key=lambda d: run.domain_tokens[d])
        for place, d in enumerate(order):
            budget[d] = min(left / (len(order) - place), self.epochs * run.domain_tokens[d])
            left -= budget[d]
        return [share / sum(budget) for share in budget]
