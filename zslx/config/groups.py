"""The groups of settings of a run, one dataclass a concern; `Config` (run_config.py) holds one of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from zslx.config.fields import check, option

DATA_SET = "hf:"  # begins a data.path that `datasets` reads


class Group:
    """Base of the groups: checks ranges and choices; `label` names the group in errors."""

    label = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            check(f"{self.label}.{f.name}", getattr(self, f.name), f)


class ParameterCount(NamedTuple):
    """Numbers of parameters; `embedding` are the tables: embedding, unembedding (once when tied), learned positions."""

    non_embedding: int
    embedding: int
    total: int


NATIVE = ("mlp_ratio", "gated_mlp", "positions", "norm", "norm_gain", "bias", "tied", "init")  # the native model's own


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """Architecture; the defaults are those of the paper's main runs. Where `hf` names one of transformers, the sizes
    (width, layers, heads, positions, vocabulary) are its, and the rest is no setting."""

    label = "model"
    hf: str = option("", "model of transformers: its type, or a folder of it; model=hf:NAME sets it")
    hf_config: str = option("", "what the folder's config.json says; model=hf:FOLDER reads it")
    pretrained: bool = option(False, "start from the weights in the folder")
    d_model: int = option(96, "width of the residual stream", low=1)
    n_layers: int = option(4, "number of blocks", low=1)
    n_heads: int = option(3, "attention heads", low=1)
    vocab_size: int = option(0, "rows of the embedding; 0 takes the tokenizer's, more pads it", low=0)
    mlp_ratio: float = option(1.0, "MLP width over d_model, gate and value counted together", low=0.01)
    gated_mlp: bool = option(True, "SwiGLU, else GELU")
    positions: str = option("rope", "position encoding", choices=("rope", "learned"))
    max_positions: int = option(1024, "rows of the learned position table", low=1)
    norm: str = option("rmsnorm", "normalisation", choices=("rmsnorm", "layernorm"))
    norm_gain: bool = option(False, "learned gain of the norms (LayerNorm: and bias)")
    bias: bool = option(False, "biases in the linear layers")
    tied: bool = option(True, "one matrix for embedding and unembedding")
    init: str = option("mitchell", "initialisation; normal is std 0.02", choices=("mitchell", "normal"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hf:
            return self._check_hf()
        if self.hf_config or self.pretrained:
            raise ValueError("model.hf_config and model.pretrained belong to model.hf: give model=hf:FOLDER")
        if self.d_model % self.n_heads:
            raise ValueError(f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}")
        if self.positions == "rope" and (self.d_model // self.n_heads) % 2:
            raise ValueError(f"model.n_heads={self.n_heads}: rotary positions need an even width per head")
        if self.mlp_width < 1:
            raise ValueError(f"model.mlp_ratio={self.mlp_ratio}: the MLP would have no width")

    def _check_hf(self) -> None:
        for f in dataclasses.fields(self):
            if f.name in NATIVE and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"model.{f.name}={getattr(self, f.name)}: no setting of model=hf:{self.hf}; a folder with a "
                    "config.json of your own can say everything about its architecture"
                )
        if self.pretrained and not self.hf_config:
            raise ValueError(f"model.pretrained=true: model=hf:{self.hf} names no folder with weights")

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP (of the gate and of the value each, when gated)."""
        return int(self.mlp_ratio * self.d_model / (2 if self.gated_mlp else 1))

    def parameters(self, vocabulary: int = 0) -> ParameterCount:
        """Numbers of parameters at a tokenizer's vocabulary, which `vocab_size` overrides where it is not 0.

        ValueError for a model of transformers: its run's manifest has them.
        """
        if self.hf:
            raise ValueError(f"model=hf:{self.hf}: its parameters are counted when it is built")
        d, gates = self.d_model, 2 if self.gated_mlp else 1
        layer = 4 * d * d + (gates + 1) * d * self.mlp_width
        if self.bias:
            layer += 4 * d + gates * self.mlp_width + d
        norm = (2 if self.norm == "layernorm" else 1) * d if self.norm_gain else 0
        non_embedding = self.n_layers * (layer + 2 * norm) + norm
        embedding = (self.vocab_size or vocabulary) * d * (1 if self.tied else 2)
        if self.positions == "learned":
            embedding += self.max_positions * d
        return ParameterCount(non_embedding=non_embedding, embedding=embedding, total=non_embedding + embedding)

    def flops_per_token(self, length: int, vocabulary: int = 0) -> int:
        """Floating-point operations of forward and backward for one of `length` tokens: 6 a weight that multiplies
        it, of the unembedding as well, and 6·L·d·T for causal attention. Look-ups, norms and the optimizer: nothing."""
        weights = self.parameters(vocabulary).non_embedding + (self.vocab_size or vocabulary) * self.d_model
        return 6 * weights + 6 * self.n_layers * self.d_model * length


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """Text and batches."""

    label = "data"
    path: str = option(
        "", "folder or glob of text files, one domain a subfolder; hf:PLACE, a data set; empty: the embedded text"
    )
    vocab_size: int = option(
        2048, "entries of the byte-level BPE trained on the text; with data.tokenizer, those that it has", low=0
    )
    tokenizer: str = option("", "tokenizer.json, its folder, or a name on the hub; empty: a BPE trained on the text")
    text_column: str = option("text", "column of a data set that holds the text; a.b is a field of a")
    domain_column: str = option("", "column of a data set whose values are the domains; empty: one domain")
    max_tokens: int = option(0, "tokens taken of a data set, documents in their order; 0: all", low=0)
    batch_size: int = option(16, "sequences a step", low=1)
    seq_len: int = option(64, "predicted positions of a sequence", low=1)
    heldout_sequences: int = option(96, "sequences of the fixed held-out set", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokenizer and not 300 <= self.vocab_size <= 65536:
            raise ValueError(f"data.vocab_size={self.vocab_size!r}: must be a number from 300 to 65536")
        if not self.path.startswith(DATA_SET):
            for key, unset in (("text_column", "text"), ("domain_column", ""), ("max_tokens", 0)):
                if getattr(self, key) != unset:
                    raise ValueError(f"data.{key}={getattr(self, key)!r} is for data sets: data.path={DATA_SET}PLACE")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Group):
    """AdamW and its schedule; the defaults are the paper's but for the rate."""

    label = "optim"
    lr: float = option(3e-3, "peak learning rate", low=0.0, high=100.0)
    beta1: float = option(0.9, "AdamW β1", low=0.0, high=0.9999999)
    beta2: float = option(0.95, "AdamW β2", low=0.0, high=0.9999999)
    eps: float = option(1e-5, "AdamW ε", low=0.0, high=1.0)
    weight_decay: float = option(0.1, "AdamW decay of matrices (embeddings, norms and biases: none)", low=0.0)
    clip: float = option(1.0, "largest gradient norm; 0 does not clip", low=0.0)
    warmup: int = option(100, "steps of linear warm-up", low=0)
    warmup_start: float = option(0.1, "factor on the rate at the first step of the warm-up", low=0.0, high=1.0)
    schedule: str = option("constant", "after the warm-up", choices=("constant", "cosine", "wsd"))
    final: float = option(0.1, "factor on the rate at the last step (cosine, wsd)", low=0.0, high=1.0)
    cooldown: float = option(0.2, "share of the steps in which wsd decays", low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Group):
    """Length, seed and arithmetic."""

    label = "train"
    steps: int = option(1000, "optimizer steps", low=1)
    seed: int = option(0, "seed of initial weights, data order and every draw", low=0)
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = option("float32", "bfloat16 is autocast", choices=("float32", "bfloat16", "float64"))
    threads: int = option(1, "CPU threads (part of a trial's identity: sums depend on it)", low=1, high=256)
    compile: bool = option(False, "torch.compile the step: forward, backward, surgery over sequences")
    micro_batch: int = option(0, "sequences of one pass, whose gradients are added up; 0: the whole batch", low=0)
    checkpointing: bool = option(False, "compute each block again in the backward: less memory, a third more time")
    loss_chunk: int = option(0, "positions whose logits are there at a time; 0: all", low=0)
    deterministic: bool = option(False, "on a GPU only kernels that give the same bits again, where torch has them")


@dataclass(frozen=True, kw_only=True)
class InstrumentConfig(Group):
    """What is measured on the way; never changes training, and is no part of a trial's identity."""

    label = "instruments"
    heldout_points: int = option(90, "log-spaced steps at which held-out loss is measured", low=2)
    probes: bool = option(True, "interference and decomposition at powers of two and half-way between")
    gradient_sequences: int = option(16, "held-out sequences of the gradient interference; 0: none", low=0)
    gradient_positions: bool = option(False, "gradient interference over positions, of the same sequences")
    token_samples: int = option(
        0, "sampled tokens of per-token gradient interference and first-order effect; 0: none", low=0
    )
    decomposition: bool = option(True, "error-entropy, self-alignment and confidence of the held-out losses")
    rank_bins: str = option("rank", "bins of the decomposition: each rank, or powers of two", choices=("rank", "log2"))


@dataclass(frozen=True, kw_only=True)
class RunConfig(Group):
    """How a run is kept; no part of a trial's identity."""

    label = "run"
    resume_seconds: float = option(30.0, "a checkpoint at least this often: what a kill can lose", low=0.0)
    workers: int = option(1, "processes that share each step, a GPU for each where there are GPUs", low=1, high=1024)
    until: int = option(0, "step at which to pause; the same run goes on with a later one. 0: to the end", low=0)
    shard: bool = option(False, "several ranks share weights, gradients and optimizer: models too large for one GPU")


GROUPS: dict[str, type[Group]] = {
    g.label: g for g in (ModelConfig, DataConfig, OptimConfig, TrainConfig, InstrumentConfig, RunConfig)
}
