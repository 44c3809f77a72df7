"""Parameter names to parts and layers, zslx's own and Hugging Face's."""

from __future__ import annotations

import pytest

from zslx.config import ModelConfig
from zslx.model import Transformer
from zslx.model_parts import by_group, by_layer, layer, part

NAMES = {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "positions",
    "transformer.h.11.ln_1.bias": "norms",
    "transformer.h.0.attn.c_attn.weight": "attention",
    "transformer.h.0.attn.c_proj.bias": "attention",
    "transformer.h.0.mlp.c_fc.weight": "mlp",
    "transformer.ln_f.weight": "norms",
    "gpt_neox.embed_in.weight": "embedding",
    "gpt_neox.layers.3.attention.query_key_value.weight": "attention",
    "gpt_neox.layers.3.attention.dense.bias": "attention",
    "gpt_neox.layers.3.mlp.dense_h_to_4h.weight": "mlp",
    "gpt_neox.layers.3.post_attention_layernorm.weight": "norms",
    "gpt_neox.final_layer_norm.bias": "norms",
    "embed_out.weight": "unembedding",
    "model.embed_tokens.weight": "embedding",
    "model.layers.10.self_attn.q_proj.weight": "attention",
    "model.layers.10.self_attn.q_norm.weight": "norms",
    "model.layers.10.mlp.gate_proj.weight": "mlp",
    "model.layers.10.input_layernorm.weight": "norms",
    "model.norm.weight": "norms",
    "lm_head.weight": "unembedding",
    "model.decoder.embed_positions.weight": "positions",
    "model.decoder.layers.0.self_attn_layer_norm.weight": "norms",
    "model.decoder.layers.0.fc1.weight": "mlp",
    "transformer.word_embeddings.weight": "embedding",
    "transformer.word_embeddings_layernorm.weight": "norms",
    "transformer.h.0.self_attention.dense.weight": "attention",
    "model.transformer.blocks.0.att_proj.weight": "attention",
    "model.transformer.blocks.0.ff_out.weight": "mlp",
    "model.transformer.ff_out.weight": "unembedding",
    "vision.patch.weight": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_part(name: str) -> None:
    assert part(name) == NAMES[name]


def test_layer() -> None:
    assert layer("gpt_neox.layers.12.mlp.bias") == 12 and layer("transformer.h.0.ln_1.bias") == 0
    assert layer("model.norm.weight") is None


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_the_native_model_has_a_part(tied: bool) -> None:
    config = ModelConfig(
        d_model=8, n_layers=2, n_heads=2, vocab_size=13, tied=tied, norm_gain=True, bias=True, positions="learned"
    )
    names = [name for name, _ in Transformer(config).named_parameters()]
    groups = by_group(names)
    expected = {"body", "attention", "mlp", "norms", "embedding", "positions"}
    assert groups.keys() == expected | (set() if tied else {"unembedding"})
    assert sorted(n for key, members in groups.items() if key != "body" for n in members) == sorted(names)
    assert by_layer(names).keys() == {"0", "1"}
