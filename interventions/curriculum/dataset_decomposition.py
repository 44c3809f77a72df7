"""Dataset decomposition: sequences within one document each, of lengths T, T/2, T/4, ..., short ones first.

    pieces      a document of l predictions is cut into ⌊l/T⌋ pieces of T, and the rest by its binary digits
    batch       all pieces of a step have one length L: B·T/L of them, the tokens of any other step
    lengths     each length gets an equal share of the steps of a cycle (to a step); among those with steps left,
                T/2^k is drawn with the odds `odds`^k

Departures: the longest length is data.seq_len; a step's domains are the baseline's; a domain without pieces of a
length cuts its next longer ones. Pieces of a length are read in a seeded order, again from the start when all were
read. Cost: at most 1, since attention over short sequences is cheaper. Oracle: pieces cut by hand
(tests/unit/test_curricula.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from zslx import Intervention, RunView, State, setting

if TYPE_CHECKING:
    from zslx.text.loader import Ids, Walk


@dataclass(frozen=True)
class DatasetDecomposition(Intervention):
    """Trains on sequences that never cross the border of a document, in batches of one length each.

    Acts on the batch: where its sequences begin and how long they are; its tokens stay as many, and as many of each
    domain. odds 2 is the paper's Grow-P2, 1 Uniform, 100 Grow-P100. It has no placebo: which pieces a step reads is
    drawn at random already, so its control is length_warmup, which shortens sequences without regard to documents.
    Held-out loss is always measured at full length.
    """

    name = "dataset_decomposition"
    family = "curriculum"
    source = "Pouransari et al. 2024 (dataset decomposition), arXiv 2405.13226"
    cost = "at most 1.00"

    lengths: int = setting(6, "number of lengths, each half of the one before; 1 is full length alone", low=1, high=20)
    odds: float = setting(2.0, "odds of a length against the double one", low=0.01, high=100.0, log=True)
    cycles: int = setting(8, "how often the lengths start over", low=1, high=10_000)

    def sizes(self, full: int) -> list[int]:
        """The lengths, the longest first: halves as long as they are whole."""
        return [full >> k for k in range(self.lengths) if full % (1 << k) == 0]

    def sequence(self, run: RunView, state: State) -> int:
        sizes = self.sizes(run.seq_len)
        count, given = len(sizes), state.setdefault("given", [0] * len(sizes))
        ends = (cycle * run.steps // self.cycles for cycle in range(1, self.cycles + 1))
        end = next(step for step in ends if step >= run.step)  # of this cycle
        left = [(end + count - 1 - k) // count - steps for k, steps in enumerate(given)]
        odds = torch.tensor([self.odds**k if n > 0 else 0.0 for k, n in enumerate(left)], dtype=torch.float64)
        k = int(torch.multinomial(odds, 1, generator=state["generator"]))
        given[k] += 1
        return sizes[k]

    def windows(self, run: RunView, walk: Walk, state: State) -> tuple[Ids, Ids]:
        if "pieces" not in state:
            state["pieces"] = [self.pieces(run, walk, d, state) for d in range(len(walk.streams))]
            state["read"] = [[0] * len(own) for own in state["pieces"]]
        k = self.sizes(run.seq_len).index(walk.length)
        domains = np.repeat(walk.domains, run.seq_len // walk.length)
        firsts = np.empty_like(domains)
        for d in np.unique(domains).tolist():
            at, own, read = np.flatnonzero(domains == d), state["pieces"][d][k].cpu().numpy(), state["read"][d]
            firsts[at] = own[(read[k] + np.arange(len(at))) % len(own)]
            read[k] += len(at)
        return domains, firsts

    def pieces(self, run: RunView, walk: Walk, d: int, state: State) -> list[torch.Tensor]:
        """First tokens of domain d's pieces by length, in a random order, no more than the run can read."""
        sizes = self.sizes(run.seq_len)
        found: list[torch.Tensor] = []
        for k, firsts in enumerate(cut(walk.streams[d], sizes)):
            own = torch.from_numpy(firsts)
            own = own[torch.randperm(len(own), generator=state["generator"])]
            if len(own) == 0 and not found:
                raise ValueError(
                    f"{self.name}: no document of the domain {run.domains[d]!r} has more than data.seq_len="
                    f"{run.seq_len} tokens; allowed are shorter sequences"
                )
            most = run.steps * run.batch_size * (run.seq_len // sizes[k])
            found.append(own[:most].clone() if len(own) else found[-1])
        return found


def cut(stream: np.ndarray, sizes: list[int]) -> list[Ids]:
    """First tokens of the pieces of each length, the longest first, of documents that token 0 ends.

    A document of l tokens and its end makes l predictions.
    """
    ends = np.flatnonzero(stream == 0)
    at = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    found = []
    for size in sizes:
        count = (ends - at) // size  # after the first length 0 or 1
        first = np.repeat(at, count)
        found.append(first + size * (np.arange(len(first)) - np.repeat(count.cumsum() - count, count)))
        at = at + count * size
    return found
