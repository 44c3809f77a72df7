"""The vocabulary in groups of equal weight: how frequent a token is in the training text.

Ids are sorted by falling count (ties in their order) and laid end to end, each as long as its count. An id belongs to
the group in whose share of that line its middle lies: group 0 has the most frequent ids, and each of the K groups
about 1/K of the text's tokens. An id that makes up more than that alone can leave a group empty.

Exact: counts are summed in float64. Cost: a sort of the vocabulary. Checked by tests/unit/test_weightings.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frequency_groups(token_counts: Tensor, num_groups: int) -> Tensor:
    """The group (V,) of each id, 0 to `num_groups` − 1, from its count in the training text."""
    counts = token_counts.double()
    order = counts.argsort(descending=True, stable=True)
    sorted_counts = counts[order]
    middle = (sorted_counts.cumsum(0) - sorted_counts / 2) / counts.sum().clamp(min=1)
    of_id = torch.empty_like(order)
    of_id[order] = (middle * num_groups).long().clamp(max=num_groups - 1)
    return of_id
