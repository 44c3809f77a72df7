"""The decoder-only transformer of the paper's main runs, each unusual choice switchable.

- rotary positions, no biases, RMSNorm without gain, head tied to the token embedding
- SwiGLU whose `mlp_ratio` counts gate and value together: ratio 1 is d → d/2 (gate, value) → d
- "mitchell" initialisation: std 1/√d, output projections 1/√(2·fan_in·(layer+1)), truncated at 3σ
- parameters: V·d + 5.5·L·d² at mlp_ratio 1

Source: the authors' configs for "Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration
and Zero-Sum Learning" (ACL 2025).

Shapes: B sequences, T positions, V vocabulary, D width, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from zslx.config.groups import ModelConfig
from zslx.config.run_config import Config
from zslx.model import hugging_face
from zslx.model.attention_mask import attention_mask
from zslx.model.hugging_face import HuggingFaceModel


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.rotary = config.n_heads, config.positions == "rope"
        self.qkv = linear(config.d_model, 3 * config.d_model, config.bias)
        self.out = linear(config.d_model, config.d_model, config.bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (n h d) -> n b h t d", n=3, h=self.n_heads)
        if self.rotary:  # the tables are of float32 at least; all three must be of one type
            q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(rearrange(y, "b h t d -> b t (h d)"))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gated = config.gated_mlp
        self.up = linear(config.d_model, config.mlp_width * (2 if self.gated else 1), config.bias)
        self.down = linear(config.mlp_width, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.gated:
            value, gate = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(h))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), Attention(config)
        self.mlp_norm, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Token ids (B, T) to logits (B, T, V). Without a generator the parameters stay uninitialised.

    context (B, T), where given: the first position that each position attends to. `depth`: how many layers are in use,
    from the first on; the others take no part.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.depth = config, config.n_layers
        self.checkpointing, self.loss_chunk = False, 0
        self._rotations: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.embedding = skip_init(nn.Embedding, config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = skip_init(nn.Embedding, config.max_positions, config.d_model)
        self.blocks: Iterable[Block] = nn.ModuleList([Block(config) for _ in range(config.n_layers)])  # type: ignore
        self.norm = make_norm(config)
        self.unembedding = linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.unembedding.weight = self.embedding.weight
        if generator is not None:
            self.initialise(generator)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        logits: Tensor = self.unembedding(self.hidden(tokens, context))
        return logits

    def hidden(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, T, D): what the unembedding makes logits of."""
        x = self.embedding(tokens)
        if self.config.positions == "learned":
            x = x + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        rotation = self.rotation(tokens.shape[1], x)
        mask = None if context is None else attention_mask(context)
        for block in islice(self.blocks, self.depth):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotation, mask)
        normed: Tensor = self.norm(x)
        return normed

    def rotation(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary table, made once: a compiled model would compute its sines anew for every number it rotates."""
        key = (length, like.dtype, like.device)
        if key not in self._rotations:
            self._rotations[key] = rotary_table(length, self.config.d_model // self.config.n_heads, like)
        return self._rotations[key]

    def begin_with(self, depth: int) -> None:
        """Use the first `depth` layers. The others get output projections of zero: they would change nothing."""
        self.depth = depth
        with torch.no_grad():
            for output in self._outputs(depth, None):
                output.zero_()

    def grow(self, depth: int) -> None:
        """Use the first `depth` layers from now on, which leaves the function as it is.

        ValueError where a layer that comes into use is not as `begin_with` left it.
        """
        if depth > self.depth and any(bool(output.any()) for output in self._outputs(self.depth, depth)):
            raise ValueError(
                f"a layer from {self.depth} to {depth - 1} has changed before it came into use: an optimizer must "
                "leave parameters without a gradient as they are"
            )
        self.depth = depth

    def _outputs(self, first: int, end: int | None) -> Iterator[Tensor]:
        """The output projections of layers: where they are zero, a layer changes nothing."""
        for block in islice(self.blocks, first, end):
            yield from block.attention.out.parameters()
            yield from block.mlp.down.parameters()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix from `generator` (a CPU generator gives the same weights on every device)."""
        c = self.config

        def draw(weight: Tensor, std: float) -> None:
            fresh = torch.empty(weight.shape, dtype=torch.float32)
            weight.copy_(nn.init.trunc_normal_(fresh, 0.0, std, -3 * std, 3 * std, generator=generator))

        width_std = 0.02 if c.init == "normal" else c.d_model**-0.5
        draw(self.embedding.weight, width_std)
        if c.positions == "learned":
            draw(self.position_embedding.weight, width_std)
        for i, block in enumerate(self.blocks):
            depth = 2 * c.n_layers if c.init == "normal" else 2 * (i + 1)
            for layer in (block.attention.qkv, block.mlp.up):
                draw(layer.weight, width_std)
            for layer in (block.attention.out, block.mlp.down):
                base = 0.02 if c.init == "normal" else layer.in_features**-0.5
                draw(layer.weight, base * depth**-0.5)
        if not c.tied:
            draw(self.unembedding.weight, width_std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


def linear(width_in: int, width_out: int, bias: bool) -> nn.Linear:
    """A linear layer whose parameters are not drawn yet (torch's own would come from the global generator)."""
    return skip_init(nn.Linear, width_in, width_out, bias=bias)


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=1e-5, elementwise_affine=config.norm_gain)
    return nn.LayerNorm(config.d_model, eps=1e-5, elementwise_affine=config.norm_gain)


def rotary_table(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D/H) of the rotary angles, base 10,000, in the dtype and on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=dtype) / width)
    angle = torch.arange(length, device=like.device, dtype=dtype)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (B, H, T, D/H): halves rotated against each other."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


Model = Transformer | HuggingFaceModel


def build_model(config: Config, vocab_size: int, generator: torch.Generator | None) -> Model:
    """The model of a run, its vocabulary that of the tokenizer (padded where the architecture names more rows)."""
    build: Callable[..., Model] = hugging_face.build if config.model.hf else _native
    model = build(config, vocab_size, generator)
    return model.double() if config.train.dtype == "float64" else model


def _native(config: Config, vocab_size: int, generator: torch.Generator | None) -> Transformer:
    rows = config.model.vocab_size or vocab_size
    if rows < vocab_size:
        raise ValueError(f"model.vocab_size={rows}: the tokenizer has {vocab_size} entries; allowed are 0 or more")
    if config.model.positions == "learned" and config.model.max_positions < config.data.seq_len:
        raise ValueError(
            f"model.max_positions={config.model.max_positions} is less than data.seq_len={config.data.seq_len}"
        )
    model = Transformer(dataclasses.replace(config.model, vocab_size=rows), generator)
    model.checkpointing, model.loss_chunk = config.train.checkpointing, config.train.loss_chunk
    return model
