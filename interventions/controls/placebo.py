"""The card of the placebos; zslx/intervention/placebo.py makes them."""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention


@dataclass(frozen=True)
class Placebo(Intervention):
    """The same method with its weights permuted at random: `placebo:pcgrad` is the placebo of pcgrad.

    Takes the settings of the method it stands for. Which permutation it makes is the method's own declaration:
    weights over groups, the mask within each tensor, weights over the tokens of the batch, the samples or windows
    drawn, or the actions of a controller over time: those of another run of the method (`reference=RUN_FOLDER`).
    Methods without one (extra losses, optimizers, schedules) are compared with a baseline whose learning rate
    is tuned as much as theirs.
    """

    name = "placebo"
    family = "controls"
    source = "zslx: the control that tells acting on conflict from acting at all"
    cost = "that of the method"
    status = "available as placebo:NAME"
