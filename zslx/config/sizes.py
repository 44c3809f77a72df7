"""Named model sizes. The paper's: the authors' configs/main-results, V = 50,304, context 1,024. The laptop's share
their architecture at a vocabulary of 2,048. nanoGPT's are those of the paper's ablation: their width, layers and heads
in an architecture with learned positions, LayerNorm and an MLP of 4 d with GELU (and so more parameters than the label
says). LayerNorm has a bias here and none there."""

from __future__ import annotations

from typing import Any

from zslx.config import hugging_face
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
NANOGPT = "nanogpt-"
NANOGPT_SIZES = {NANOGPT + name: PAPER_SIZES[name] for name in ("14M", "37M", "78M", "144M")}
SIZES = LAPTOP_SIZES | PAPER_SIZES | NANOGPT_SIZES
PAPER_VOCABULARY, LAPTOP_VOCABULARY = 50304, 2048
_NANOGPT: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "gated_mlp": False,
    "positions": "learned",
    "norm": "layernorm",
    "norm_gain": True,
    "init": "normal",
}


def model_preset(name: str) -> ModelConfig:
    """The architecture of a named size, or of `hf:NAME`, a model of transformers."""
    if name.startswith(hugging_face.PREFIX):
        return hugging_face.from_name(name.removeprefix(hugging_face.PREFIX))
    if name not in SIZES:
        raise ValueError(
            f"unknown model size {name!r}; allowed are {', '.join(SIZES)} (zslx presets describes them) and hf:NAME"
        )
    d_model, n_layers, n_heads = SIZES[name]
    return ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=0 if name in LAPTOP_SIZES else PAPER_VOCABULARY,
        **(_NANOGPT if name in NANOGPT_SIZES else {}),
    )
