"""The settings of a run: frozen dataclasses, validated, with dotted `key=value` overrides. Needs no torch.

`Config` has one group a concern. `model data optim train` and the intervention decide what is computed and are
part of a trial's identity; `instruments` only observe and `run` says how the run is kept, so neither is.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices=None) -> Any:
    """A field with its meaning and what is allowed."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


class Group:
    """Base of the groups: checks ranges and choices; `label` names the group in errors."""

    label = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            check(f"{self.label}.{f.name}", getattr(self, f.name), f)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """Architecture; the defaults are those of the paper's main runs."""

    label = "model"
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
        if self.d_model % self.n_heads:
            raise ValueError(f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}")
        if self.positions == "rope" and (self.d_model // self.n_heads) % 2:
            raise ValueError(f"model.n_heads={self.n_heads}: rotary positions need an even width per head")
        if self.mlp_width < 1:
            raise ValueError(f"model.mlp_ratio={self.mlp_ratio}: the MLP would have no width")

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP (of the gate and of the value each, when gated)."""
        return int(self.mlp_ratio * self.d_model / (2 if self.gated_mlp else 1))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """Text and batches."""

    label = "data"
    path: str = option("", "folder or glob of text files, one domain a subfolder; empty: the embedded text")
    vocab_size: int = option(2048, "entries of the byte-level BPE trained on the text", low=300, high=65536)
    batch_size: int = option(16, "sequences a step", low=1)
    seq_len: int = option(64, "predicted positions of a sequence", low=1)
    heldout_sequences: int = option(96, "sequences of the fixed held-out set", low=1)


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
    compile: bool = option(False, "torch.compile the plain step's forward")


@dataclass(frozen=True, kw_only=True)
class InstrumentConfig(Group):
    """What is measured on the way; never changes training, and is no part of a trial's identity."""

    label = "instruments"
    heldout_points: int = option(90, "log-spaced steps at which held-out loss is measured", low=2)
    probes: bool = option(True, "interference and decomposition at powers of two and half-way between")
    gradient_sequences: int = option(16, "held-out sequences of the gradient interference; 0: none", low=0)
    gradient_positions: bool = option(False, "gradient interference over positions, of the same sequences")
    token_samples: int = option(0, "sampled tokens of the per-token gradient interference; 0: none", low=0)
    decomposition: bool = option(True, "error-entropy, self-alignment and confidence of the held-out losses")
    rank_bins: str = option("rank", "bins of the decomposition: each rank, or powers of two", choices=("rank", "log2"))


@dataclass(frozen=True, kw_only=True)
class RunConfig(Group):
    """How a run is kept; no part of a trial's identity."""

    label = "run"
    resume_seconds: float = option(30.0, "a checkpoint at least this often: what a kill can lose", low=0.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    intervention: str = "none"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # intervention name → its settings
    reference: str = ""  # run folder of the reference model, for methods that need one
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    instruments: InstrumentConfig = field(default_factory=InstrumentConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervention", one_spelling(self.intervention))  # it is part of the identity

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; unknown keys and bad values are errors."""
        pairs: list[tuple[str, Any]] = []
        for key, value in values.items():
            if key in GROUPS and isinstance(value, Mapping):
                pairs += [(f"{key}.{name}", item) for name, item in value.items()]
            elif key == "settings":
                pairs += [(f"{m}.{name}", item) for m, group in value.items() for name, item in group.items()]
            else:
                pairs.append((key, value))
        return override(Config(), pairs)


GROUPS: dict[str, type[Group]] = {
    g.label: g for g in (ModelConfig, DataConfig, OptimConfig, TrainConfig, InstrumentConfig, RunConfig)
}
PLAIN = ("intervention", "reference")


def parse_overrides(config: Config, items: Iterable[str]) -> Config:
    """Apply `key=value` texts such as `optim.lr=1e-3`, `model=0.4M` or `pcgrad.groups=domain`."""
    pairs = []
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{item!r} is not of the form key=value, such as optim.lr=1e-3")
        pairs.append((key.strip(), value.strip()))
    return override(config, pairs)


def override(config: Config, pairs: Iterable[tuple[str, Any]]) -> Config:
    """`config` with dotted keys changed; texts are read as the type of the field.

    Each group is rebuilt once, so that keys that must fit each other (width and heads) may come in any order.
    """
    pairs = list(pairs)
    plain: dict[str, Any] = {key: str(value) for key, value in pairs if key in PLAIN}
    config = dataclasses.replace(config, **plain)  # first: which method settings are known depends on it
    for _, value in (pair for pair in pairs if pair[0] == "model"):
        from zslx.presets import model_preset

        config = dataclasses.replace(config, model=model_preset(str(value)))
    groups: dict[str, dict[str, Any]] = {}
    settings = {name: dict(values) for name, values in config.settings.items()}
    for key, value in pairs:
        head, _, name = key.partition(".")
        if key in PLAIN or key == "model":
            continue
        if head in GROUPS and name:
            fields = {f.name: f for f in dataclasses.fields(GROUPS[head])}  # type: ignore[arg-type]
            if name not in fields:
                raise ValueError(unknown(key, [f"{head}.{n}" for n in fields]))
            groups.setdefault(head, {})[name] = convert(key, value, fields[name])
        elif name and head in method_names(config.intervention):
            settings.setdefault(head, {})[name] = value
        else:
            raise ValueError(unknown_setting(key, config))
    changed = {head: dataclasses.replace(getattr(config, head), **values) for head, values in groups.items()}
    return dataclasses.replace(config, settings=settings, **changed)


def known_keys() -> list[str]:
    return [*PLAIN, "model", *(f"{g}.{f.name}" for g, c in GROUPS.items() for f in dataclasses.fields(c))]  # type: ignore[arg-type]


def unknown_setting(key: str, config: Config) -> str:
    """The message for a key that is neither one of `known_keys` nor a setting of the config's interventions."""
    head, _, name = key.partition(".")
    close = difflib.get_close_matches(head, GROUPS, n=1)
    if name and head not in GROUPS and not close:  # most likely a method that was not asked for
        asked = "none" if config.intervention == "none" else repr(config.intervention)
        return (
            f"unknown key {key!r}: settings of {head!r} need intervention={head}, and the intervention is {asked}; "
            f"groups of settings are {', '.join(GROUPS)}"
        )
    return unknown(key, known_keys())


def method_names(spec: str) -> list[str]:
    """The names in an intervention spec: `placebo:pcgrad+cosine` → [pcgrad, cosine]."""
    return [part.rpartition(":")[2] for part in one_spelling(spec).split("+")]


def one_spelling(spec: str) -> str:
    """An intervention spec without the white space around its names."""
    return re.sub(r"\s*([+:])\s*", r"\1", spec).strip()


def unknown(key: str, allowed: list[str]) -> str:
    """A message for an unknown key: the closest names first, else all of them."""
    close = difflib.get_close_matches(key, allowed, n=3, cutoff=0.5)
    return f"unknown key {key!r}; " + (
        f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(allowed)}"
    )


def convert(key: str, value: Any, f: dataclasses.Field) -> Any:
    """`value` (a text, or what JSON gave) as the type of the field, or ValueError naming key and value."""
    kind = f.type if isinstance(f.type, str) else f.type.__name__
    try:
        if kind == "bool":
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if kind == "int":
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(value) if not isinstance(value, str) or value.lstrip("+-").isdigit() else int(float(value))
        if kind == "float":
            if isinstance(value, bool) or not math.isfinite(float(value)):
                raise ValueError
            return float(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        what = {"bool": "true or false", "int": "a whole number", "float": "a finite number"}[kind]
        raise ValueError(f"{key}={value!r}: must be {what}") from None
    return str(value)


def check(label: str, value: Any, f: dataclasses.Field) -> None:
    """Raise ValueError naming the key, its value and what is allowed."""
    choices, low, high = (f.metadata.get(k) for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ValueError(f"{label}={value!r}: allowed are {', '.join(map(str, choices))}")
    if low is None and high is None:
        return
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or value != value
    if bad or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{label}={value!r}: must be a number {bounds}")
