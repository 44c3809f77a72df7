"""The native model as a model of transformers, with the same logits.

    rotary positions, RMSNorm, SwiGLU     Llama
    learned positions, LayerNorm, GELU    GPT-2

Gains that the native model does not have are ones there, biases zeros. Other architectures have no class in
transformers that is built in and computes the same. Checked by tests/unit/test_export.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zslx.config.groups import ModelConfig
from zslx.config.hugging_face import library
from zslx.model.hugging_face import HuggingFaceModel
from zslx.model.transformer import Block, Model, Transformer

LLAMA = {"positions": "rope", "norm": "rmsnorm", "gated_mlp": True}
GPT2 = {"positions": "learned", "norm": "layernorm", "gated_mlp": False}


def as_hugging_face(model: Model, seq_len: int, end_of_text: int = 0) -> Any:
    """The model of transformers that computes what `model` does. ValueError where there is none.

    seq_len: positions that it is said to have where the native model has no limit. end_of_text: the token that ends
    every document, and so stands before each.
    """
    if isinstance(model, HuggingFaceModel):
        return model.inner
    config = model.config
    for form, make in ((LLAMA, _llama), (GPT2, _gpt2)):
        if all(getattr(config, key) == value for key, value in form.items()):
            made = make(model, config, seq_len)
            for settings in (made.config, made.generation_config):
                settings.bos_token_id = settings.eos_token_id = end_of_text
            break
    else:
        has = ", ".join(f"model.{key}={getattr(config, key)}" for key in LLAMA)
        forms = " or ".join(", ".join(f"{key}={value}" for key, value in form.items()) for form in (LLAMA, GPT2))
        raise ValueError(f"{has}: no class of transformers computes the same; allowed are {forms}")
    return made


def _common(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _made(kind: str, weights: Iterator[tuple[str, Tensor]], config: ModelConfig, **values: Any) -> Any:
    transformers = library()
    with torch.random.fork_rng(devices=[]):  # draws weights, which are then replaced
        made = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **_common(config), **values), dtype=torch.float32
        )
    given = dict(weights)
    missing, strange = made.load_state_dict(given, strict=False, assign=True)
    missing = [name for name in missing if not (config.tied and name == "lm_head.weight")]
    assert not missing and not strange, (missing, strange)
    made.tie_weights()
    return made.eval()


def _llama(model: Transformer, config: ModelConfig, seq_len: int) -> Any:
    def weights() -> Iterator[tuple[str, Tensor]]:
        yield "model.embed_tokens.weight", model.embedding.weight
        for i, block in enumerate(model.blocks):
            at = f"model.layers.{i}."
            yield from _norm(at + "input_layernorm", block.attention_norm, config, bias=False)
            yield from _norm(at + "post_attention_layernorm", block.mlp_norm, config, bias=False)
            for kind, tensor in block.attention.qkv.named_parameters():
                for name, part in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{at}self_attn.{name}_proj.{kind}", part
            for kind, tensor in block.attention.out.named_parameters():
                yield f"{at}self_attn.o_proj.{kind}", tensor
            for kind, tensor in block.mlp.up.named_parameters():
                for name, part in zip(("up", "gate"), tensor.chunk(2), strict=True):
                    yield f"{at}mlp.{name}_proj.{kind}", part
            for kind, tensor in block.mlp.down.named_parameters():
                yield f"{at}mlp.down_proj.{kind}", tensor
        yield from _norm("model.norm", model.norm, config, bias=False)
        if not config.tied:
            yield "lm_head.weight", model.unembedding.weight

    return _made(
        "llama",
        _own(weights()),
        config,
        intermediate_size=config.mlp_width,
        num_key_value_heads=config.n_heads,
        head_dim=config.d_model // config.n_heads,
        max_position_embeddings=max(seq_len, config.max_positions),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        hidden_act="silu",
        attention_bias=config.bias,
        mlp_bias=config.bias,
    )


def _gpt2(model: Transformer, config: ModelConfig, seq_len: int) -> Any:
    def products(block: Block) -> Iterator[tuple[str, torch.nn.Linear]]:
        yield "attn.c_attn", block.attention.qkv
        yield "attn.c_proj", block.attention.out
        yield "mlp.c_fc", block.mlp.up
        yield "mlp.c_proj", block.mlp.down

    def weights() -> Iterator[tuple[str, Tensor]]:
        yield "transformer.wte.weight", model.embedding.weight
        yield "transformer.wpe.weight", model.position_embedding.weight
        for i, block in enumerate(model.blocks):
            at = f"transformer.h.{i}."
            yield from _norm(at + "ln_1", block.attention_norm, config, bias=True)
            yield from _norm(at + "ln_2", block.mlp_norm, config, bias=True)
            for name, linear in products(block):
                yield f"{at}{name}.weight", linear.weight.T
                yield (
                    f"{at}{name}.bias",
                    linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias,
                )
        yield from _norm("transformer.ln_f", model.norm, config, bias=True)
        if not config.tied:
            yield "lm_head.weight", model.unembedding.weight

    return _made(
        "gpt2",
        _own(weights()),
        config,
        n_inner=config.mlp_width,
        max_position_embeddings=config.max_positions,
        layer_norm_epsilon=1e-5,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _norm(name: str, norm: torch.nn.Module, config: ModelConfig, *, bias: bool) -> Iterator[tuple[str, Tensor]]:
    """Gain, and bias where wanted, of a norm that may have neither."""
    gain = getattr(norm, "weight", None)
    yield f"{name}.weight", torch.ones(config.d_model) if gain is None else gain
    if bias:
        shift = getattr(norm, "bias", None)
        yield f"{name}.bias", torch.zeros(config.d_model) if shift is None else shift


def _own(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Copies, in float32 on the CPU."""
    for name, tensor in weights:
        yield name, tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
