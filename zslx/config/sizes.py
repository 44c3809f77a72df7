"""Named model sizes. The paper's: the authors' configs/main-results, V = 50,304, context 1,024. The laptop's share
their architecture at a vocabulary of 2,048."""

from __future__ import annotations

from zslx.config.groups import ModelConfig

# name: width, layers, heads. The name is the total number of parameters at the vocabulary below.
LAPTOP_SIZES = {
    "0.08M": (32, 2, 2),
    "0.1M": (48, 2, 2),
    "0.2M": (64, 3, 2),
    "0.4M": (96, 4, 3),
    "0.8M": (128, 6, 4),
    "4M": (320, 6, 5),
}
PAPER_SIZES = {
    "14M": (256, 4, 4),
    "37M": (512, 8, 8),
    "78M": (768, 12, 12),
    "144M": (1024, 16, 16),
    "285M": (1536, 16, 16),
    "472M": (2048, 16, 16),
}
PAPER_VOCABULARY, LAPTOP_VOCABULARY = 50304, 2048


def model_preset(name: str) -> ModelConfig:
    """The architecture of a named size."""
    sizes = LAPTOP_SIZES | PAPER_SIZES
    if name not in sizes:
        raise ValueError(f"unknown model size {name!r}; allowed are {', '.join(sizes)} (zslx presets describes them)")
    d_model, n_layers, n_heads = sizes[name]
    vocabulary = PAPER_VOCABULARY if name in PAPER_SIZES else 0
    return ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, vocab_size=vocabulary)
