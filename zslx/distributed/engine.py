"""The gradient engine on several ranks: statistics of the group gradients of the whole batch, exact.

Rank r holds of each group k what its own sequences add, g_k^r. The Gramian of g_k = Σ_r g_k^r, their absolute and their
sign sums take all of g_k, so that the ranks exchange: of every parameter each gets one W-th of the coordinates from all
others, and then has g_k there of every group. Groups may span ranks.

    exchanged     k P numbers of a rank with parts of k groups (B/W where a group is a sequence), (W−1)/W of them to
                  others. A ring that hands whole gradients round would send W times as many
    sums          all-reduced, P numbers each; the Gramian likewise, K² numbers a parameter
    combination   Σ_k w_k g_k^r at home, then all-reduced: P numbers

Each exchange begins with the parameter's number, because ranks whose models take other parameters into use (experts to
which no token of a rank is routed) would mix them up. That is refused where the tensors have one size; else the
collective fails, or waits until its limit. Checked by tests/distributed/test_ranks.py;
measured by benchmarks/ranks.py.

Shapes: B sequences, T positions, N tokens, K groups, P parameters, W ranks, n coordinates of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.distributed import group
from zslx.gradients.engine.contributions import GroupGradients, Grouping
from zslx.gradients.engine.loss_batch import Groups, LossFn, batch_size, check_groups, choose, random_signs
from zslx.gradients.engine.reduction import Reduction, block_rows
from zslx.gradients.engine.tape import Tape
from zslx.gradients.sequence_groups import DEFAULT_WANT, GroupStats, collect, weighted
from zslx.gradients.token_groups import LastLinear, TokenForward

MARK = 251  # what numbers of parameters are counted up to: exact in every dtype


@dataclass(kw_only=True)
class ShardedReduction(Reduction):
    """Receives of each parameter what this rank's sequences add to the group gradients.

    members: of each rank, which of the K groups it has, in the order in which it holds them. numbers: those of the
    parameters.
    `complete` must be called when the backward is done.
    """

    members: list[Tensor]
    count: int
    numbers: Mapping[str, int]

    def receive(self, g: GroupGradients) -> None:
        self.received.add(g.name)
        (height, width), dtype, device = g.shape, g.dtype, g.parameter.device
        accumulator = torch.promote_types(g.parameter.dtype, torch.float32)
        most = max(len(own) for own in self.members)  # the same blocks on every rank
        step = height if self.keep else block_rows(most * height * width * dtype.itemsize, height, device)
        room = self._room(g.count * step * width, dtype, device, self.keep)
        into = {what: result.zero_() for what, result in self._allocate(g, self.count, accumulator).items()}
        for start in range(0, height, step):
            rows = min(step, height - start)
            block = g.block(start, room[: g.count * rows * width].view(g.count, rows, width))
            here, own = self._exchanged(block.view(g.count, -1), self.numbers[g.name], accumulator)
            at = slice(start * width + here.start, start * width + here.stop)
            self._reduce(g.name, own, into, at, accumulator, kept=False)
        if self.keep:
            self.kept[g.name] = block
            self.kept_bytes += block.nbytes

    def _exchanged(self, block: Tensor, number: int, dtype: torch.dtype) -> tuple[slice, Tensor]:
        """This rank's share of the coordinates of a block (k, n), and the gradients of all K groups there."""
        n, mark = block.shape[1], number % MARK
        shares = [group.rows(n, of=r) for r in range(group.world())]
        here = shares[group.rank()]
        head = block.new_full((1,), mark)
        own = torch.cat([part for share in shares for part in (head, block[:, share].reshape(-1))])
        width = here.stop - here.start
        sizes = [1 + len(members) * width for members in self.members]
        parts = group.exchange(own, [1 + len(block) * (s.stop - s.start) for s in shares], sizes).split(sizes)
        if any(int(part[0]) != mark for part in parts):
            raise ValueError(
                "the ranks' sequences use different parameters of the model (are its experts routed?): the gradient "
                "engine needs one device then"
            )
        found = block.new_zeros(self.count, width, dtype=dtype)
        for members, part in zip(self.members, parts, strict=True):
            found.index_add_(0, members, part[1:].view(len(members), width).to(dtype))
        return here, found

    def complete(self) -> None:
        """Add up over the ranks: each has filled in its own share of the coordinates."""
        for store in (self.sum, self.abs_sum, self.sign_sum, self.chance_sum):
            for value in store.values():
                group.total(value)
        for store in (self.gramians, self.squares, self.l1):
            if store:  # small: in one piece
                for value, found in zip(store.values(), group.total(torch.stack(list(store.values()))), strict=True):
                    value.copy_(found)


class Ranks:
    """The groups of a batch as the ranks share them: ids (B,) or (B, T) of the whole batch, and K."""

    def __init__(self, ids: Tensor, count: int, device: torch.device):
        ids, self.count = ids.to(device), count
        every = [ids[group.rows(len(ids), of=r)] for r in range(group.world())]
        self.members = [own.unique() for own in every]
        mine = every[group.rank()]
        self.own = torch.searchsorted(self.members[group.rank()], mine)  # numbered as this rank holds them

    @property
    def held(self) -> Tensor:
        """Which of the K groups this rank has a part of."""
        return self.members[group.rank()]

    def shares(self, own: Tensor) -> Tensor:
        """(K,) of all ranks from (k,) of this one's groups."""
        return group.total(own.new_zeros(self.count).index_add_(0, self.held, own))


def sharded_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    groups: Groups | None = None,
    *,
    by_token: bool = False,
    want: Iterable[str] = DEFAULT_WANT,
    keep: bool = False,
    proxy: bool = False,
    chance: torch.Generator | None = None,
) -> GroupStats:
    """As `group_stats` (zslx/gradients/group_stats.py) of a batch that every rank holds.

    loss_fn(model, batch) returns the losses (b, T) of this rank's sequences alone; so do the `losses` of the result.
    groups: of the whole batch; a function is given no losses.
    """
    count = batch_size(batch)
    if count < group.world():
        raise ValueError(f"{count} sequences for {group.world()} ranks: each needs one")
    chosen, wanted = choose(model, None), frozenset(want)
    if by_token:
        with LastLinear(model) if proxy else nullcontext() as last:
            losses = loss_fn(model, batch)
        assert groups is not None
        forward = RankedTokens(chosen, losses, count, _given(groups, count))
        return forward.exact(wanted, keep, chance) if last is None else forward.proxy(wanted, last)
    with Tape(model, chosen, len(range(count)[group.rows(count)])) as tape:
        losses = loss_fn(model, batch)
        tokens = count * losses.shape[1]
        ids, K = check_groups(_given(groups, count), (count,))
        ranks = Ranks(ids, K, losses.device)
        reduction = ShardedReduction(
            want=wanted,
            signs=None if chance is None else random_signs(K, chance, losses),
            keep=keep,
            members=ranks.members,
            count=K,
            numbers={name: i for i, name in enumerate(chosen)},
        )
        tape.examine(losses)
        tape.slow |= _anywhere(tape.slow, chosen, losses.device)  # slow on one rank, slow on all: in the same order
        cotangent = torch.full_like(losses, 1 / tokens)
        grouping = Grouping.make((ranks.own, len(ranks.held)), len(losses), losses.device)
        tape.backward(losses, cotangent, grouping, reduction.receive)
        slow = tuple(sorted(tape.slow))
    reduction.complete()
    share = ranks.shares(grouping.sum((losses.detach() * cotangent).sum(1)))
    combine = _combination(reduction, chosen, ranks.held) if keep else None
    return collect(reduction, chosen, losses, share, tokens, slow=slow, combine=combine)


class RankedTokens(TokenForward):
    """One forward of this rank's sequences, with groups (ids (B, T), K) of the tokens of the whole batch."""

    def __init__(self, chosen: dict[str, Tensor], losses: Tensor, count: int, groups: tuple[Tensor, int]):
        ids, K = groups
        super().__init__(chosen, losses, None, (ids[group.rows(count)], K))
        self.tokens = float(count * losses.shape[1])
        self.cotangent = torch.full_like(losses, 1 / self.tokens)

    def reduction(self, **options: Any) -> Reduction:
        every = torch.arange(self.K, device=self.losses.device)
        return ShardedReduction(
            members=[every] * group.world(),
            count=self.K,
            numbers={name: i for i, name in enumerate(self.chosen)},
            **options,
        )

    def shares(self) -> Tensor:
        return group.total(super().shares())

    def collect(self, reduction: Reduction, combine: Any = None) -> GroupStats:
        assert isinstance(reduction, ShardedReduction)
        reduction.complete()
        if combine is not None:  # the proxy's backward of this rank's weighted losses
            own = combine

            def combine(weights: Tensor) -> Mapping[str, Tensor]:
                return {name: group.total(g) for name, g in own(weights).items()}

        elif reduction.keep:
            combine = _combination(reduction, self.chosen, torch.arange(self.K, device=self.losses.device))
        return super().collect(reduction, combine)


def _combination(reduction: ShardedReduction, chosen: Mapping[str, Tensor], held: Tensor) -> Any:
    """Σ_k w_k g_k: of what this rank has of the groups, then over the ranks."""

    def combine(weights: Tensor) -> Mapping[str, Tensor]:
        own = weights[held]
        return {name: group.total(weighted(g, own, chosen[name])) for name, g in reduction.kept.items()}

    return combine


def _given(groups: Groups | None, sequences: int) -> tuple[Tensor, int]:
    if groups is None:
        return torch.arange(sequences), sequences
    return groups(torch.empty(0)) if callable(groups) else groups


def _anywhere(names: set[str], every: Mapping[str, Tensor], device: torch.device) -> set[str]:
    """The names that are in any rank's set."""
    here = group.total(torch.tensor([float(name in names) for name in every], device=device))
    return {name for name, found in zip(every, here.tolist(), strict=True) if found}
