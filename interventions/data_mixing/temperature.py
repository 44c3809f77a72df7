"""Temperature mixing: domains in proportion to a power of their size.

    p_d = n_d^(1/τ) / Σ_e n_e^(1/τ),   n_d the training tokens of domain d

Exact. Cost: nothing. Oracle: closed form (tests/unit/test_exemplars.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class Temperature(Intervention):
    """Draws each domain in proportion to its size to the power 1/τ.

    Acts on the mixture, the same way at every step. τ = 1 draws tokens in proportion to the text there is; a large τ
    approaches equal shares, which is what the baseline draws. A domain whose text runs out is repeated.
    """

    name = "temperature"
    family = "data_mixing"
    source = "Arivazhagan et al. 2019, arXiv 1907.05019, Section 4.1; common in multilingual training"
    cost = "1.00"

    tau: float = setting(1.0, "temperature τ; large values approach equal shares", low=0.1, high=100.0, log=True)

    def mixture(self, run: RunView, state: State) -> list[float]:
        largest = max(run.domain_tokens)
        powers = [(size / largest) ** (1 / self.tau) for size in run.domain_tokens]
        return [power / sum(powers) for power in powers]
