"""What a run measures on the way: held-out loss, and at probe steps interference and decomposition.

    update_norm              ‖Δθ‖ of one step
    dt1_batch, dt1_heldout   D and M of the loss changes by the update t−1 → t, on its batch and held-out
    dtt                      D and M of the changes from t/2 to t, held-out
    ….by_domain              of both, held-out: D within and between the domains (domain_interference.py)
    grad_sequence, grad_position, grad_token   gradient interference at θ_t (gradient_interference.py)
    first_order              C_g, C_ug, C_uG of the update t−1 → t, at θ_{t−1}; where tokens' gradients are sampled
    decomposition            error-entropy, self-alignment, confidence at θ_t, held-out (rank_decomposition.py)

Each in a pass of its own that draws nothing and writes nothing of the training's: with any set of instruments
the run is bitwise the same (tests/invariants/test_observers.py). A probe at step t needs the losses before the
update, so it has several parts:

    before(t)      a copy of θ_{t−1} and its held-out losses; those are there where t−1 was a point of the curve
    after(t)       one held-out pass at θ_t, one forward of the step's batch (its losses at θ_{t−1} came with the step)
    gradients(t)   passes of the gradient engine

The trainer makes the held-out passes and those of the gradients, so that in a pack one pass serves several runs.

dt1 here is the run's own, possibly clipped update; the paper takes one extra, unclipped update on fixed unseen
batches. Where an arm ships averaged weights, `heldout_loss` and `decomposition` are theirs, everything else is of
the weights that train. All is computed in the parameters' dtype, float32 at least, but for dt1_batch, whose
losses before the update are the training's own: under bfloat16 its D includes rounding (`zslx probe` measures it
in float32). Cost: benchmarks/instruments.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zslx.config.run_config import Config
from zslx.gradients import norm, sequence_stats
from zslx.instruments.gradient_interference import GradientSample, gradient_interference, update_effect
from zslx.instruments.heldout import HeldOut
from zslx.instruments.loss_interference import interference
from zslx.instruments.measuring_steps import heldout_steps, probe_steps, token_steps
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.weights import load_weights, weights_of
from zslx.seeds import generator
from zslx.text.loader import Batch


class Instruments:
    """The instruments of one run. `state` is kept in the run's checkpoints."""

    sequence_stats = staticmethod(sequence_stats)  # what measures the gradients of sequences

    def __init__(self, config: Config, heldout: HeldOut):
        self.config, self.heldout = config, heldout
        steps, chosen = config.train.steps, config.instruments
        self.heldout_steps = set(heldout_steps(steps, chosen.heldout_points, chosen.probes))
        self.probe_steps = set(probe_steps(steps)) if chosen.probes else set()
        self.token_steps = set(token_steps(steps))
        self.state: dict[str, Any] = {"losses": {}}  # held-out losses by probe step, for dtt
        # The losses of the last point, only to save a pass: after a resume they are measured again, to the same bits.
        self._last: tuple[int, Tensor] | None = None
        self.weights_before: dict[str, Tensor] = {}  # the update of a probe step, from `before` to `forget`

    def due(self, step: int) -> bool:
        return step in self.heldout_steps

    def lacks(self, step: int) -> bool:
        """Whether `before` needs the held-out losses at θ_{t−1}."""
        return step in self.probe_steps and (self._last is None or self._last[0] != step - 1)

    def before(self, step: int, model: nn.Module, losses: Tensor | None) -> None:
        """Weights and held-out losses before the update of a probe step; `losses` (S, T) where they were lacking."""
        if step not in self.probe_steps:
            return
        self.weights_before = weights_of(model)
        if losses is not None:
            self._last = (step - 1, losses)

    def terms(self, step: int) -> Decomposition | None:
        """The decomposition to be made of the held-out losses of this step."""
        wanted = step in self.probe_steps and self.config.instruments.decomposition
        return Decomposition(self.config.instruments.rank_bins) if wanted else None

    def after(
        self,
        step: int,
        model: nn.Module,
        losses: Tensor,
        terms: Decomposition | None = None,
        *,
        batch: Batch | None = None,
        batch_losses: Tensor | None = None,
        average: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """The record of one step: held-out loss, and at probe steps everything else but `gradients`.

        losses (S, T) are those of the trained weights, held-out; the `terms` come from them, or from `average`, the
        weights that the arm would ship.
        """
        record = self.heldout.shipped(model, losses, average, terms)
        before, self._last = self._last, (step, losses)
        if step not in self.probe_steps:
            return record
        assert batch is not None and batch_losses is not None and before is not None and before[0] == step - 1
        batch_after = self.heldout.training_losses(model, batch)
        record["update_norm"] = self.update_norm(model)
        record["dt1_batch"] = interference(batch_after - batch_losses)
        record["dt1_heldout"] = self.heldout.interference(losses - before[1])
        record |= self._doubling(step, losses)
        if terms is not None:
            record["decomposition"] = terms.record()
        return record

    def gradients(self, step: int, model: nn.Module) -> dict[str, Any]:
        """Gradient interference at a probe step, and where tokens are sampled the first-order effect of its update."""
        sample = self.sample(step)
        effect = {"first_order": self._update_effect(sample, model)} if sample.tokens else {}
        return effect | gradient_interference(model, self.heldout, sample, self.sequence_stats)

    def update_norm(self, model: nn.Module) -> float:
        """‖Δθ‖ of the update of a probe step."""
        return norm(p.detach() - self.weights_before[name] for name, p in model.named_parameters())

    def forget(self) -> None:
        """Let the weights before the update go."""
        self.weights_before = {}

    def sample(self, step: int) -> GradientSample:
        """What gradients are measured over at a probe step."""
        chosen, seed = self.config.instruments, self.config.train.seed
        return GradientSample(
            sequences=chosen.gradient_sequences,
            positions=chosen.gradient_positions,
            tokens=chosen.token_samples if step in self.token_steps else 0,
            draws=lambda purpose: generator(seed, "instruments", purpose, step),
        )

    def _update_effect(self, sample: GradientSample, model: nn.Module) -> dict[str, Any]:
        """The first-order decomposition of the step's update, at the weights before it; the model ends as it was."""
        after = weights_of(model)
        update = {name: new - self.weights_before[name] for name, new in after.items()}
        load_weights(model, self.weights_before)
        try:
            return update_effect(model, self.heldout, sample, update)
        finally:
            load_weights(model, after)

    def _doubling(self, step: int, losses: Tensor) -> dict[str, Any]:
        """dtt from step/2, where that was a probe; the losses are kept for 2·step."""
        kept = self.state["losses"]
        found = {}
        if step % 2 == 0 and str(step // 2) in kept:
            found["dtt"] = {"from": step // 2} | self.heldout.interference(losses - kept[str(step // 2)])
        kept[str(step)] = losses
        for old in [s for s in kept if 2 * int(s) <= step]:  # a later 2t needs only what lies above
            del kept[old]
        return found
