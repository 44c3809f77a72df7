"""Named sizes and presets. Sizes are architectures; presets are whole studies' settings.

Paper sizes: the authors' configs/main-results, V = 50,304, context 1,024, constant rate after 2,000 steps of
warm-up, 512 sequences a step. Laptop sizes share its architecture at a vocabulary of 2,048.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from zslx.config.fields import unknown
from zslx.config.groups import DataConfig, InstrumentConfig, OptimConfig, TrainConfig
from zslx.config.run_config import Config
from zslx.config.sizes import NANOGPT, PAPER_SIZES, model_preset

PAPER_LR = {"14M": 1.26e-3, "37M": 9.71e-4, "78M": 8.01e-4, "144M": 6.81e-4, "285M": 5.67e-4, "472M": 4.87e-4}
REFERENCE_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a sweep compares by default, and the settings that its trials share."""

    help: str
    sizes: tuple[str, ...]
    seeds: int
    config: Config
    arms: tuple[str, ...] = ("none", "{arm}")  # {arm} is the intervention asked for

    def for_size(self, size: str) -> Config:
        """The settings of one trial at a named size. The preset's rate is for REFERENCE_WIDTH and falls as 1/width,
        which is where the best rates of the laptop sizes lie (benchmarks/README.md); the paper's sizes have its own."""
        config = dataclasses.replace(self.config, model=model_preset(size))
        rate = PAPER_LR.get(size.removeprefix(NANOGPT)) or config.optim.lr * REFERENCE_WIDTH / config.model.d_model
        rate = float(f"{rate:.2e}")  # three digits, as anyone would write it
        return dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=rate))


_LAPTOP = Config(
    data=DataConfig(batch_size=16, seq_len=32, heldout_sequences=112),
    optim=OptimConfig(lr=3e-3, warmup=40),
    train=TrainConfig(steps=4096),
    instruments=InstrumentConfig(token_samples=64),
)
PRESETS = {
    "smoke": Preset(
        help="a minute: does everything work?",
        sizes=("0.1M", "0.2M"),
        seeds=2,
        config=Config(
            data=DataConfig(batch_size=8, seq_len=32, heldout_sequences=32),
            optim=OptimConfig(lr=8e-3, warmup=20),
            train=TrainConfig(steps=200),
            instruments=InstrumentConfig(heldout_points=60, gradient_sequences=8, token_samples=16),
        ),
    ),
    "laptop": Preset(
        help="minutes on two cores: a first look, exploratory",
        sizes=("0.08M", "0.1M", "0.2M"),
        seeds=3,
        config=_LAPTOP,
    ),
    "verdict": Preset(
        help="hours on two cores: every control, ten seeds, an answer",
        sizes=("0.08M", "0.1M", "0.2M"),
        seeds=10,
        config=_LAPTOP,
        arms=("none", "rate:0.5", "rate:2", "cosine", "{arm}", "placebo:{arm}", "{arm}+cosine"),
    ),
    "gpu": Preset(
        help="a GPU: 0.8M, 4M and 14M with placebo and cosine; small ones train in packs",
        sizes=("0.8M", "4M", "14M"),
        seeds=3,
        arms=("none", "cosine", "{arm}", "placebo:{arm}"),
        # 1e-3 at 4M is where its break was first seen. The rates are not tuned: --tune-rate does it.
        config=Config(
            data=DataConfig(vocab_size=4096, batch_size=16, seq_len=128, heldout_sequences=64),
            optim=OptimConfig(lr=5e-3, warmup=40),
            # Compiled: a pack of 32 of 4M takes a third of the time.
            train=TrainConfig(steps=8192, dtype="bfloat16", compile=True),
            instruments=InstrumentConfig(token_samples=64),
        ),
    ),
    "paper": Preset(
        help="GPU days: the paper's six models with its settings, 137 billion tokens each",
        sizes=tuple(PAPER_SIZES),
        seeds=1,
        # Tokenizer of 50,280 entries, whose table is padded to 50,304; held-out set as long as its C4 sample.
        config=Config(
            data=DataConfig(vocab_size=50280, batch_size=512, seq_len=1024, heldout_sequences=976),
            optim=OptimConfig(warmup=2000),
            train=TrainConfig(steps=262144, dtype="bfloat16", compile=True, micro_batch=32),
            instruments=InstrumentConfig(token_samples=64),
        ),
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name; its `for_size("0.1M")` gives the configuration of a trial. ValueError if there is none."""
    if name not in PRESETS:
        raise ValueError(unknown(name, list(PRESETS)).replace("unknown key", "unknown preset"))
    return PRESETS[name]
