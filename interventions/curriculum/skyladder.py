"""SkyLadder: full-length sequences whose attention is cut into context windows that grow.

    w(t) = w₁ + ⌊(T − w₁) · x⌋            linear,    x = min(1, (t − 1) / (duration · steps))
    w(t) = w₁ + ⌊(T − w₁) · sin(πx/2)⌋    sine
    w(t) = ⌊w₁ · (T / w₁)^x⌋              exponential
    position i attends to ⌊i / w⌋ · w, ..., i

Departures: the end of the growth is a share of the run instead of a rate in tokens a step, and the first window is 4
positions, where the paper has 32 of 8,192. Cost: attention with a mask, about that of full attention; the paper's
kernel skips what is masked. Oracle: published values; a window that divides T is the model on cut sequences
(tests/oracles/test_context.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class SkyLadder(Intervention):
    """Lets predictions see short contexts first and ever longer ones until the context is whole.

    Acts on the attention mask: tokens, order and positions of a batch stay the same. With `documents` no position
    sees the document before its own, all through the run. Held-out loss is always measured with the whole context.
    It has no placebo: its control is length_warmup, which cuts the sequences instead.
    """

    name = "skyladder"
    family = "curriculum"
    source = "Zhu et al. 2025 (SkyLadder), arXiv 2503.15450"
    cost = "about 1.1: attention with a mask"
    neutral = {"duration": 0.0, "documents": False}

    start: int = setting(4, "positions of the first context window", low=1, high=1_000_000)
    duration: float = setting(0.6, "share of the run after which the context is whole", low=0.0, high=1.0)
    growth: str = setting("linear", "how the window grows", choices=("linear", "sine", "exponential"))
    documents: bool = setting(False, "let no position see the document before its own")

    def window(self, run: RunView, length: int) -> int:
        """w: positions of this step's context windows, in sequences of `length`."""
        x = min(1.0, (run.step - 1) / (self.duration * run.steps)) if self.duration else 1.0
        if x == 1 or self.start >= length:
            return length
        if self.growth == "exponential":
            return int(self.start * (length / self.start) ** x)
        return self.start + int((length - self.start) * (x if self.growth == "linear" else math.sin(math.pi / 2 * x)))

    def context(self, run: RunView, tokens: Tensor, state: State) -> Tensor | None:
        length = tokens.shape[1]
        window = self.window(run, length)
        if window == length and not self.documents:
            return None
        at = torch.arange(length, device=tokens.device)
        first = (at // window * window).expand(tokens.shape)
        if not self.documents:
            return first
        begins = torch.zeros_like(tokens)
        begins[:, 1:] = at[1:] * (tokens[:, :-1] == 0)  # token 0 ends a document
        return torch.maximum(first, begins.cummax(1).values)
