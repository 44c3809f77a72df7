"""Batches: every domain walked in one seeded order, the same in every arm.

A domain's training stream is cut into windows of T tokens (T+1 with the target that follows), so each token is
predicted once an epoch. An epoch is a permutation of the windows, keyed by (seed, domain's name, epoch) and
computed, not stored (zslx/text/permutation.py). A batch takes the next windows of each domain:

    how many        n_d, Σ n_d = B. Balanced by turns: exact, and what D leaves over of B is carried to the next
                    step. For a mixture p by systematic sampling: n_d = ⌊B P_d + u⌋ − ⌊B P_{d−1} + u⌋, P the
                    cumulative shares, u uniform from (seed, step): E n_d = B p_d, and |n_d − B p_d| < 1
    which           those at the domain's counter, which then moves on by n_d
    in what order   shuffled by (seed, step)

So a batch is a pure function of (seed, step, mixture, length, counters), and the counters are all that a checkpoint
keeps. A shorter length T/c cuts each window into c sequences: the tokens of the step, and the walk, stay the same.

Cost: benchmarks/data.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zslx.seeds import seed_for
from zslx.text.corpus import Corpus
from zslx.text.permutation import ROUNDS, permuted

# Batches that are prepared together, where nothing is done to them: so many steps, and so many tokens at most.
STEPS_AHEAD, TOKENS_AHEAD = 64, 2**16
Ids = NDArray[np.int64]
Choice = Ids | tuple[Ids, Ids]  # windows (B,), or the domains (n,) and first tokens (n,) of sequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B sequences of T positions.

    tokens, targets (B, T) int64: `targets` are the tokens that follow; domains (B,) int64. context (B, T) int64: the
    first position that each position attends to, None for all before it.
    """

    tokens: Tensor
    targets: Tensor
    domains: Tensor
    context: Tensor | None = None

    def to(self, device: str | torch.device) -> Batch:
        """On a GPU from pinned memory, so that the copy waits for nothing that the GPU has to do."""
        if torch.device(device).type == "cuda" and not self.tokens.is_cuda:
            return self.each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.each(lambda tensor: tensor.to(device))

    def parts(self, sequences: int) -> list[Batch]:
        """So many sequences at a time, in their order."""
        cuts = [slice(at, at + sequences) for at in range(0, len(self.tokens), sequences)]
        return [self.each(lambda tensor, cut=cut: tensor[cut]) for cut in cuts]

    def each(self, change: Callable[..., Tensor]) -> Batch:
        return Batch(
            tokens=change(self.tokens),
            targets=change(self.targets),
            domains=change(self.domains),
            context=None if self.context is None else change(self.context),
        )


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The sequences of one step before they are read, for a method that chooses them.

    domains (B,): the domain of each. windows (B,): the windows that the seeded order gives, each from 0 to
    counts[domain] - 1. length: positions of a sequence in this step. counts, taken (D,): each domain's windows, and how
    many of them the run took before this step. streams: each domain's training tokens, documents ended by 0;
    where they end with another token, reading them is an error.
    `read(domains, windows)`: their tokens (n, T+1). `text(domains, windows)`: their texts.
    `reference_losses(domains, windows)`: mean loss (n,) of the reference run on each, nats, for a method that needs
    reference_losses.
    """

    domains: Ids
    windows: Ids
    length: int
    counts: Ids
    taken: Ids
    streams: Sequence[NDArray[Any]]
    read: Callable[[Ids, Ids], Ids]
    text: Callable[[Ids, Ids], list[str]]
    reference_losses: Callable[[Ids, Ids], NDArray[np.float64]] | None = None


class ForeignStreams(Sequence[NDArray[Any]]):
    """Streams of a tokenizer whose documents do not end with 0. Methods that cut at 0 must not take them for others."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus.train)

    def __getitem__(self, index: Any) -> Any:
        raise ValueError(
            "walk.streams has documents that end with token 0, and those of this text end with "
            f"{self.corpus.end_of_text}: choose a data.tokenizer whose end of text is 0, or none"
        )


class Loader:
    """Training batches of `batch_size` windows of `seq_len` tokens from the domains of `corpus`."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        batch_size: int,
        seq_len: int,
        device: str | torch.device = "cpu",
    ):
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"batch_size={batch_size}, seq_len={seq_len}: both must be at least 1")
        self.corpus, self.seed, self.device = corpus, seed, device
        self.batch_size, self.seq_len = batch_size, seq_len
        self._streams = [np.asarray(stream) for stream in corpus.train]
        streams = zip(corpus.domains, self._streams, strict=True)
        self.windows = np.array([_windows(s, seq_len, f"{name!r} has {len(s)} training") for name, s in streams])
        self.taken = np.zeros(len(self.windows), dtype=np.int64)  # windows of each domain since the run began
        self._keys: dict[tuple[int, int], NDArray[np.uint64]] = {}
        self._ahead: dict[tuple[int, bytes], tuple[Batch, Ids]] = {}

    def batch(
        self,
        step: int,
        mixture: Iterable[float] | None = None,
        seq_len: int | None = None,
        choose: Callable[[Walk], Choice | None] | None = None,
        batch_size: int | None = None,
    ) -> Batch:
        """The next batch. `step` counts from 1; `mixture` (D,) shares of the domains, None for equal ones.

        `choose` may put other windows (B,) in the place of those that come next, or sequences of `seq_len` tokens that
        begin anywhere; the counters move on all the same.

        `batch_size`: windows in this step (None: the loader's B).

        `seq_len` (None: the loader's T) divides T: with T = c·seq_len the batch has B·c sequences, neighbours cut
        from one window.
        """
        if mixture is None and seq_len is None and choose is None and batch_size is None:
            return self._plain(step)
        length = self.seq_len if seq_len is None else seq_len
        if not 1 <= length <= self.seq_len or self.seq_len % length:
            allowed = [n for n in range(1, self.seq_len + 1) if self.seq_len % n == 0]
            raise ValueError(f"seq_len={length}: allowed are the divisors of data.seq_len, {allowed}")
        count = self.batch_size if batch_size is None else batch_size
        taken = self.taken
        domains = (
            self._balanced(step, count, int(taken.sum())) if mixture is None else self._sampled(step, mixture, count)
        )
        windows = self._next_windows(domains)
        if choose is not None:
            walk = Walk(
                domains=domains,
                windows=windows,
                length=length,
                counts=self.windows,
                taken=taken,
                streams=self._streams if not self.corpus.end_of_text else ForeignStreams(self.corpus),
                read=self._read,
                text=self._text,
            )
            chosen = choose(walk)
            if isinstance(chosen, tuple):
                domains, firsts = chosen
                return _batch(_sequences(self._streams, domains, firsts, length), domains, length).to(self.device)
            windows = windows if chosen is None else chosen
        rows = self._read(domains, windows)
        return _batch(rows, domains, length).to(self.device)

    def _plain(self, step: int) -> Batch:
        """The batch of a step to which nothing is done, from those prepared ahead."""
        if (step, self.taken.tobytes()) not in self._ahead:
            self._ahead = self._prepared(step)
        batch, self.taken = self._ahead.pop((step, self.taken.tobytes()))
        return batch

    def _prepared(self, step: int) -> dict[tuple[int, bytes], tuple[Batch, Ids]]:
        """By step and the counters before it: the batches of the next steps, and the counters after each."""
        count, start = self.batch_size, self.taken
        steps = max(1, min(STEPS_AHEAD, TOKENS_AHEAD // (count * self.seq_len)))
        domains = [self._balanced(step + k, count, int(start.sum()) + k * count) for k in range(steps)]
        taken = np.cumsum([start, *(np.bincount(own, minlength=len(start)) for own in domains)], axis=0)
        together = np.concatenate(domains)
        rows = self._read(together, self._next_windows(together))
        self.taken = start
        whole = _batch(rows, together, self.seq_len).to(self.device)
        parts = (what.split(count) for what in (whole.tokens, whole.targets, whole.domains))
        return {
            (step + k, taken[k].tobytes()): (Batch(tokens=tokens, targets=targets, domains=own), taken[k + 1])
            for k, (tokens, targets, own) in enumerate(zip(*parts, strict=True))
        }

    def _read(self, domains: Ids, windows: Ids) -> Ids:
        return _rows(self._streams, domains, windows, self.seq_len)

    def _text(self, domains: Ids, windows: Ids) -> list[str]:
        tokenizer = self.corpus.tokenizer
        return [tokenizer.decode(row) for row in self._read(domains, windows)[:, :-1].tolist()]

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain's training text was gone through."""
        return dict(zip(self.corpus.domains, (self.taken / self.windows).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """JSON values. `windows` counts those of `seq_len` tokens that were taken, by domain."""
        return {
            "corpus": self.corpus.hash,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "windows": dict(zip(self.corpus.domains, self.taken.tolist(), strict=True)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; ValueError if it is another corpus's, seed's or length's walk."""
        for key, own in (("corpus", self.corpus.hash), ("seed", self.seed), ("seq_len", self.seq_len)):
            if state[key] != own:
                raise ValueError(f"the place in the data was saved for {key}={state[key]!r}, this run has {own!r}")
        self.taken = np.array([state["windows"][name] for name in self.corpus.domains], dtype=np.int64)

    def _balanced(self, step: int, count: int, taken: int) -> Ids:
        """(B,) domains: slot i of the whole run belongs to domain i mod D; `taken` were before this step."""
        slots = taken + np.arange(count)
        return self._draws("order", step).permutation(slots % len(self.windows))

    def _sampled(self, step: int, mixture: Iterable[float], count: int) -> Ids:
        """(B,) domains in the counts that systematic sampling gives for the shares."""
        shares = np.array([float(share) for share in mixture])
        total, names = shares.sum(), self.corpus.domains
        if len(shares) != len(names) or not (shares >= 0).all() or not 0 < total < np.inf:
            raise ValueError(
                f"mixture={shares.tolist()}: wanted is a share for each of {', '.join(names)}, none below 0, not all 0"
            )
        edges = shares.cumsum() / total * count
        edges[np.flatnonzero(shares)[-1] :] = count  # whatever the rounding
        counts = np.diff(np.floor(edges + self._draws("mixture", step).random()), prepend=0).astype(np.int64)
        return self._draws("order", step).permutation(np.repeat(np.arange(len(shares)), counts))

    def _next_windows(self, domains: Ids) -> Ids:
        """(B,) the next windows of these domains; the counters move on."""
        place, self.taken = np.empty_like(domains), self.taken.copy()
        for d in np.unique(domains):
            slots = np.flatnonzero(domains == d)
            place[slots] = self.taken[d] + np.arange(len(slots))
            self.taken[d] += len(slots)
        windows = self.windows[domains]
        epoch, index = np.divmod(place, windows)
        key = np.array([self._key(d, e) for d, e in zip(domains.tolist(), epoch.tolist(), strict=True)])
        return permuted(index, windows, key)

    def _key(self, d: int, epoch: int) -> NDArray[np.uint64]:
        if (d, epoch) not in self._keys:
            self._keys = {k: v for k, v in self._keys.items() if k[0] != d or k[1] == epoch - 1}
            seed = seed_for(self.seed, "window order", self.corpus.domains[d], epoch)
            self._keys[d, epoch] = np.random.default_rng(seed).integers(2**64, size=ROUNDS, dtype=np.uint64)
        return self._keys[d, epoch]

    def _draws(self, purpose: str, step: int) -> np.random.Generator:
        return np.random.default_rng(seed_for(self.seed, "batch", purpose, step))


def heldout(corpus: Corpus, *, sequences: int, seq_len: int) -> Batch:
    """The fixed held-out set, (sequences, seq_len): no seed enters it."""
    return _spread(corpus, corpus.heldout, "data.heldout_sequences", "held-out", sequences, seq_len)


def control(corpus: Corpus, *, sequences: int, seq_len: int) -> Batch:
    """A fixed sample (sequences, seq_len) of the training text, one sequence a domain at least: no seed enters it."""
    return _spread(corpus, corpus.train, "data.batch_size", "training", max(sequences, len(corpus.domains)), seq_len)


def _spread(
    corpus: Corpus, streams: Sequence[NDArray[Any]], key: str, what: str, sequences: int, seq_len: int
) -> Batch:
    """Windows spread evenly over each domain's text; the domains follow one another in equal shares (to a sequence).

    `key` is the setting that asks for so many `sequences`, which the error names.
    """
    streams = [np.asarray(stream) for stream in streams]
    windows = [
        _windows(stream, seq_len, f"{name!r} has {len(stream)} {what}")
        for name, stream in zip(corpus.domains, streams, strict=True)
    ]
    least, most = len(streams), min(count * len(streams) + d for d, count in enumerate(windows))
    if not least <= sequences <= most:
        raise ValueError(
            f"{key}={sequences}: this text allows from {least} (one a domain) to {most}; windows of "
            f"data.seq_len={seq_len} tokens in its {what} text: "
            + ", ".join(f"{name} {count}" for name, count in zip(corpus.domains, windows, strict=True))
        )
    domains = np.sort(np.arange(sequences) % len(streams))
    chosen = [
        (2 * np.arange(n) + 1) * count // (2 * n)  # the middle of each n-th part
        for count, n in zip(windows, np.bincount(domains).tolist(), strict=True)
    ]
    return _batch(_rows(streams, domains, np.concatenate(chosen), seq_len), domains, seq_len)


def _windows(stream: NDArray[Any], seq_len: int, who: str) -> int:
    if len(stream) <= seq_len:
        raise ValueError(
            f"data.seq_len={seq_len}: the domain {who} tokens, fewer than the {seq_len + 1} that one window needs"
        )
    return (len(stream) - 1) // seq_len


def _rows(streams: list[NDArray[Any]], domains: Ids, windows: Ids, seq_len: int) -> Ids:
    """(B, T+1) the tokens of window windows[i] of domain domains[i], with the one that follows."""
    return _sequences(streams, domains, windows * seq_len, seq_len)


def _sequences(streams: list[NDArray[Any]], domains: Ids, firsts: Ids, length: int) -> Ids:
    """(n, length+1) the tokens from firsts[i] of domain domains[i] on, with the one that follows."""
    rows = np.empty((len(domains), length + 1), dtype=np.int64)
    offsets = np.arange(length + 1)
    for d in np.unique(domains):
        slots = np.flatnonzero(domains == d)
        rows[slots] = streams[d][firsts[slots, None] + offsets]
    return rows


def _batch(rows: Ids, domains: Ids, length: int) -> Batch:
    tokens, targets = (torch.from_numpy(ids.copy()).view(-1, length) for ids in (rows[:, :-1], rows[:, 1:]))
    pieces = len(tokens) // len(domains)
    return Batch(tokens=tokens, targets=targets, domains=torch.from_numpy(np.repeat(domains, pieces)))
