"""Batches: every domain walked in one seeded order, the same in every arm.

A domain's training stream is cut into windows of T tokens (T+1 with the target that follows), so each token is
predicted once an epoch. An epoch is a permutation of the windows, keyed by (seed, domain, epoch), and computed, not
stored (zslx/permutation.py). A batch takes the next windows of each domain:

    how many        n_d, Σ n_d = B: balanced by turns (exact; what B leaves over is carried to the next step), or for a
                    mixture p by systematic sampling: n_d = ⌊B P_d + u⌋ − ⌊B P_{d−1} + u⌋, P the cumulative shares,
                    u uniform from (seed, step): E n_d = B p_d, and n_d is never off by a whole window
    which           those at the domain's counter, which then moves on by n_d
    in what order   shuffled by (seed, step)

So a batch is a pure function of (seed, step, mixture, length, counters), and the counters are all that a checkpoint
keeps. A shorter length T/c cuts each window into c sequences: the tokens of the step, and the walk, stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zslx.permutation import ROUNDS, permuted
from zslx.tokens import Corpus


@dataclass(frozen=True, kw_only=True)
class Batch:
    """tokens, targets (B, T) int64 (targets are the next tokens); domains (B,) int64; mask (B, T) bool, or None
    where every position counts."""

    tokens: Tensor
    targets: Tensor
    domains: Tensor
    mask: Tensor | None = None

    def to(self, device: str | torch.device) -> Batch:
        if self.tokens.device == torch.device(device):
            return self
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            domains=self.domains.to(device),
            mask=mask,
        )


# What a draw is for: streams of the same seed that must not meet.
_EPOCH, _MIXTURE, _ORDER = 1, 2, 3


class Loader:
    """Training batches of `batch_size` windows of `seq_len` tokens from every domain of `corpus`."""

    def __init__(
        self, corpus: Corpus, *, seed: int, batch_size: int, seq_len: int, device: str | torch.device = "cpu"
    ):
        for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1), ("seq_len", seq_len, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        self.corpus, self.seed, self.batch_size, self.seq_len, self.device = (
            corpus,
            seed,
            batch_size,
            seq_len,
            device,
        )
        self.streams = [np.asarray(stream) for stream in corpus.train]
        self.windows = [
            _windows(s, seq_len, name, "training")
            for s, name in zip(self.streams, corpus.domains, strict=True)
        ]
        self.taken = [0] * len(self.streams)  # windows, by domain, since the run began
        self._keys: dict[tuple[int, int], NDArray[np.uint64]] = {}

    def batch(self, step: int, mixture: Iterable[float] | None = None, seq_len: int | None = None) -> Batch:
        """The next batch. `step` counts from 1; `mixture` (D,) shares; `seq_len` divides the loader's.

        (B·c, T/c) where c = seq_len of the loader / `seq_len`: the same tokens in shorter sequences.
        """
        length = self.seq_len if seq_len is None else seq_len
        if not 1 <= length <= self.seq_len or self.seq_len % length:
            allowed = [n for n in range(1, self.seq_len + 1) if self.seq_len % n == 0]
            raise ValueError(f"seq_len={length}: allowed are the divisors of {self.seq_len}: {allowed}")
        domains = self._balanced(step) if mixture is None else self._sampled(step, mixture)
        rows = np.empty((self.batch_size, self.seq_len + 1), dtype=np.int64)
        for d in range(len(self.streams)):
            places = np.flatnonzero(domains == d)
            if len(places):
                rows[places] = self._next(d, len(places))
        pieces = self.seq_len // length
        return _batch(rows, np.repeat(domains, pieces), length, self.device)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain's text was gone through, by name."""
        return {
            name: taken / windows
            for name, taken, windows in zip(self.corpus.domains, self.taken, self.windows, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus.hash,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "windows": dict(zip(self.corpus.domains, self.taken, strict=True)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError for another corpus, seed or length: the walk would differ."""
        for name, mine in (("corpus", self.corpus.hash), ("seed", self.seed), ("seq_len", self.seq_len)):
            if state[name] != mine:
                raise ValueError(f"the data's state is of {name}={state[name]!r}, this run's is {mine!r}")
        self.taken = [state["windows"][name] for name in self.corpus.domains]

    def _balanced(self, step: int) -> NDArray[np.int64]:
        """(B,) domains: slot i of the run belongs to domain i mod D."""
        slots = np.arange((step - 1) * self.batch_size, step * self.batch_size)
        return self._generator(_ORDER, step).permutation(slots % len(self.streams))

    def _sampled(self, step: int, mixture: Iterable[float]) -> NDArray[np.int64]:
        shares = np.asarray(list(mixture), dtype=np.float64)
        if (
            len(shares) != len(self.streams)
            or not np.isfinite(shares).all()
            or (shares < 0).any()
            or not shares.any()
        ):
            raise ValueError(
                f"mixture={shares.tolist()}: wanted are {len(self.streams)} shares, none below 0, one above "
                f"({', '.join(self.corpus.domains)})"
            )
        edges = np.cumsum(shares) / shares.sum() * self.batch_size
        edges[np.flatnonzero(shares)[-1] :] = self.batch_size  # in spite of rounding
        marks = np.floor(edges + self._generator(_MIXTURE, step).random())
        counts = np.diff(marks, prepend=0).astype(np.int64)
        return self._generator(_ORDER, step).permutation(np.repeat(np.arange(len(shares)), counts))

    def _next(self, d: int, n: int) -> NDArray[np.int64]:
        """(n, T+1) the domain's next n windows."""
        epoch, place = np.divmod(np.arange(self.taken[d], self.taken[d] + n), self.windows[d])
        self.taken[d] += n
        window = np.empty(n, dtype=np.int64)
        for e in range(epoch[0], epoch[-1] + 1):
            now = epoch == e
            window[now] = permuted(place[now], self.windows[d], self._key(d, e))
        return _rows(self.streams[d], window, self.seq_len)

    def _key(self, d: int, epoch: int) -> NDArray[np.uint64]:
        if (d, epoch) not in self._keys:
            self._keys = {k: v for k, v in self._keys.items() if k[0] != d or k[1] >= epoch - 1}
            sequence = np.random.SeedSequence(self.seed, spawn_key=(_EPOCH, d, epoch))
            self._keys[d, epoch] = sequence.generate_state(ROUNDS, np.uint64)
        return self._keys[d, epoch]

    def _generator(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(purpose, step)))


def heldout(corpus: Corpus, *, sequences: int, seq_len: int) -> Batch:
    """The fixed held-out set: (sequences, seq_len), the domains in equal shares (to one sequence), in their order,
    windows spread evenly over each domain's held-out text. It depends on no seed."""
    if sequences < len(corpus.domains):
        raise ValueError(
            f"{sequences} held-out sequences for {len(corpus.domains)} domains: at least one each"
        )
    domains = np.sort(np.arange(sequences) % len(corpus.domains))
    rows = np.empty((sequences, seq_len + 1), dtype=np.int64)
    for d, name in enumerate(corpus.domains):
        stream, n = np.asarray(corpus.heldout[d]), int((domains == d).sum())
        if (windows := _windows(stream, seq_len, name, "held-out")) < n:
            raise ValueError(
                f"the domain {name!r} has {windows} held-out windows of {seq_len} tokens, wanted are {n}"
            )
        rows[domains == d] = _rows(stream, (2 * np.arange(n) + 1) * windows // (2 * n), seq_len)
    return _batch(rows, domains, seq_len, "cpu")


def _windows(stream: NDArray[Any], seq_len: int, name: str, kind: str) -> int:
    if (windows := (len(stream) - 1) // seq_len) < 1:
        raise ValueError(
            f"the domain {name!r} has {len(stream)} {kind} tokens, too few for one window of seq_len={seq_len} "
            f"({seq_len + 1} tokens)"
        )
    return windows


def _rows(stream: NDArray[Any], window: NDArray[np.int64], seq_len: int) -> NDArray[Any]:
    return stream[window[:, None] * seq_len + np.arange(seq_len + 1)]


def _batch(
    rows: NDArray[np.int64], domains: NDArray[np.int64], length: int, device: str | torch.device
) -> Batch:
    tokens, targets = (
        torch.from_numpy(np.ascontiguousarray(x)).view(-1, length) for x in (rows[:, :-1], rows[:, 1:])
    )
    return Batch(tokens=tokens, targets=targets, domains=torch.from_numpy(domains)).to(device)
