"""Which trials of a sweep train as packs (zslx/training/pack.py), and how much of a GPU a worker needs.

Small models leave a GPU idle by themselves. So on a GPU trials of less than SMALL parameters are packed by default, as
many together as fit into half of its memory, at most MOST. A trial that is packed has that in its identity, whatever
the size of its pack: one that is left alone is a pack of one, and trials of both kinds never meet in a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from zslx.config.run_config import Config
from zslx.config.spec import Spec
from zslx.intervention import registry
from zslx.intervention.hooks import claims
from zslx.training.pack_shape import shape

SMALL = 10e6  # parameters below which a pack gains
MOST = 64
AUTO, OFF = "auto", "off"


def checked(pack: str) -> str:
    """`auto`, `off` or a number of trials; ValueError for anything else."""
    if pack not in (AUTO, OFF) and not (pack.isdigit() and int(pack) > 0):
        raise ValueError(f"PACK={pack!r}: allowed are auto, off, or how many trials train together")
    return pack


def packed(config: Config, pack: str) -> bool:
    """Whether the trial is packed."""
    if pack == AUTO:
        small = parameters(config) < SMALL and config.run.workers == 1
        return on_gpu(config) and small and not config.model.hf
    if pack != OFF and config.run.workers > 1:
        raise ValueError(f"PACK={pack}: a trial of run.workers={config.run.workers} trains by itself; allowed is off")
    if pack != OFF and config.model.hf:
        raise ValueError(f"PACK={pack}: a trial of model=hf:{config.model.hf} trains by itself; allowed are auto, off")
    return pack != OFF


def packs(trials: Sequence[Any], pack: str) -> list[list[Any]]:
    """The trials (`config`, `packed`) as they train together, in their order; one that is not packed is by itself."""
    open_packs: dict[str, list[Any]] = {}
    found: list[list[Any]] = []
    for trial in trials:
        if not trial.packed:
            found.append([trial])
            continue
        # Runs of one length end together, so that no row of a pack is idle; surgery has a pass of its own kind.
        steps = trial.config.run.until or trial.config.train.steps
        kind = json.dumps([shape(trial.config), steps, surgery(trial.config)], sort_keys=True)
        limit = most(trial.config) if pack == AUTO else int(pack)
        if len(open_packs.get(kind, [])) >= limit or kind not in open_packs:
            open_packs[kind] = []
            found.append(open_packs[kind])
        open_packs[kind].append(trial)
    return found


def most(config: Config) -> int:
    """Runs whose pack takes at most half of the GPU's memory."""
    if not on_gpu(config):
        return MOST
    room = torch.cuda.get_device_properties(0).total_memory / 2 - RESERVE
    return max(1, min(MOST, int(room / memory(config))))


RESERVE = 2 * 2**30  # bytes that a process takes for itself


def memory(config: Config) -> float:
    """Bytes of one run: weights, gradients and Adam's moments; activations, logits and attention, some twice."""
    model, data = config.model, config.data
    rows = model.vocab_size or data.vocab_size
    tokens = data.batch_size * data.seq_len
    activations = tokens * 4 * (24 * model.n_layers * model.d_model + 4 * rows)
    gradients = 3 * 4 * data.batch_size * parameters(config) if surgery(config) else 0  # one a sequence, and sums
    attention = 4 * model.n_layers * model.n_heads * tokens * data.seq_len if packed(config, AUTO) else 0
    return 28 * parameters(config) + gradients + 2 * (activations + 3 * attention)


def surgery(config: Config) -> bool:
    """Whether a method of the run acts on the gradients of groups."""
    return any("gradient" in claims(registry.load_class(name)) for name in Spec.parse(config.intervention).names)


def parameters(config: Config) -> float:
    """About how many the model has."""
    model = config.model
    blocks = model.n_layers * model.d_model**2 * (4 + 1.5 * model.mlp_ratio)
    return blocks + model.d_model * (model.vocab_size or config.data.vocab_size)


def cores_of(config: Config) -> int:
    """CPU cores that a trial takes."""
    return config.train.threads * config.run.workers


def on_gpu(config: Config) -> bool:
    return config.train.device != "cpu" and torch.cuda.is_available()


def gpu_share(configs: Sequence[Config]) -> float:
    """Fraction of a GPU that the runs of one worker need; 0 without one."""
    if not on_gpu(configs[0]):
        return 0.0
    share = (RESERVE + sum(map(memory, configs))) / torch.cuda.get_device_properties(0).total_memory
    return min(1.0, max(0.05, round(share + 0.005, 2)))
