"""The gradient engine: exact gradients of sequences, groups and tokens at about the price of one backward.

    stats = sequence_stats(model, loss_fn, batch)          loss_fn(model, batch) -> token losses (B, T)
    stats.sum, stats.abs_sum, stats.gramian, stats.norms   of g_k = ∇ (Σ_{i∈k} ℓ_i) / N
    stats.combine(weights)                                 Σ_k w_k g_k into .grad (keep=True), no second backward

    group_stats(model, loss_fn, batch, (ids, K))           the same for groups: ids (B,) of sequences, (B, T) of tokens
    token_interference(model, loss_fn, batch, n)           D of per-token gradients from n sampled tokens
    position_interference(model, loss_fn, batch)           its one-product proxy
    token_sums(model, loss_fn, batch, n, generator=...)    Σ g_i, Σ |g_i| and Σ ±g_i over tokens, by coordinate
    first_order(model, loss_fn, batch, update)             C_g, C_ug, C_uG and D(Δℓ̂) for an update

Works for any nn.Module whose sequences lie along the first dimension: uses.py, tape.py and contributions.py say how.
Supported: tied and repeated parameters, biases, norms, position tables, frozen and unused parameters, masks,
bfloat16 autocast, activation checkpointing (use_reentrant=False), compiled models (run eagerly here), gradient
accumulation (`combine` adds to .grad). Refused: data-parallel wrappers, re-entrant checkpointing.
"""

from zslx.gradients.cancellation import Totals, histogram, totals
from zslx.gradients.first_order import FirstOrder, first_order, token_changes
from zslx.gradients.group_stats import group_stats
from zslx.gradients.norm import norm
from zslx.gradients.parameter_roles import Role, body_of, parameter_roles
from zslx.gradients.position_interference import PositionInterference, position_interference
from zslx.gradients.sequence_groups import GroupStats, sequence_stats
from zslx.gradients.token_groups import token_group_stats
from zslx.gradients.token_interference import TokenInterference, token_interference
from zslx.gradients.token_sums import TokenSums, token_sums

__all__ = [
    "FirstOrder",
    "GroupStats",
    "PositionInterference",
    "Role",
    "TokenInterference",
    "TokenSums",
    "Totals",
    "body_of",
    "first_order",
    "group_stats",
    "histogram",
    "norm",
    "parameter_roles",
    "position_interference",
    "sequence_stats",
    "token_changes",
    "token_group_stats",
    "token_interference",
    "token_sums",
    "totals",
]
