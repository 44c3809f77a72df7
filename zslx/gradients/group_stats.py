"""Statistics of the gradients of groups, of sequences or of tokens, by one call.

Exact but for the proxy (token_groups.py). Checked by tests/oracles/test_gradients.py.

Shapes: B sequences, T positions, K groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zslx.gradients.engine.loss_batch import Groups, LossFn, Selection
from zslx.gradients.sequence_groups import DEFAULT_WANT, GroupStats, sequence_stats
from zslx.gradients.token_groups import token_group_stats


def group_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    groups: Groups | None = None,
    *,
    by_token: bool = False,
    parameters: Selection = None,
    want: Iterable[str] = DEFAULT_WANT,
    keep: bool = False,
    proxy: bool = False,
    chance: torch.Generator | None = None,
) -> GroupStats:
    """Statistics of the gradients of K groups: of tokens where the ids are (B, T), of sequences where they are (B,).

    groups: (ids, K), or a function from the detached losses (B, T) to them; none: each sequence by itself. A function
    is called after the forward, and the forward differs: `by_token` says that its ids will be (B, T).
    proxy: for tokens only, a cheap stand-in for the Gramian (token_group_stats). The rest is as in sequence_stats.
    """
    if groups is not None and not callable(groups):
        by_token = groups[0].ndim == 2
    if by_token:
        assert groups is not None
        return token_group_stats(
            model, loss_fn, batch, groups, parameters=parameters, want=want, keep=keep, proxy=proxy, chance=chance
        )
    if proxy:
        raise ValueError("proxy: only groups of tokens have one")
    return sequence_stats(
        model, loss_fn, batch, groups=groups, parameters=parameters, want=want, keep=keep, chance=chance
    )
