"""A causal language model of transformers as the model of a run.

Its parameters keep their names, behind `inner.`. Two things differ from training in transformers:

- initial weights are drawn by the model's own rules, from a seed of the run's generator: the global generator, which
  those rules use, is put back as it was
- dropout is off, as in the paper's runs: a run's numbers come from its own generators alone

Weights are read from safetensors, in float32. Built models are tried on a few tokens: one that sees later tokens is
refused. Checked by tests/oracles/test_hugging_face.py.

Shapes: B sequences, T positions, V vocabulary, D width.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zslx.config.groups import ModelConfig
from zslx.config.hugging_face import architecture, library, longest
from zslx.config.run_config import Config
from zslx.model.attention_mask import attention_mask
from zslx.versions import version


class HuggingFaceModel(nn.Module):
    """Token ids (B, T) to logits (B, T, V). context (B, T), where given: the first position that each attends to."""

    def __init__(self, inner: Any, config: ModelConfig):
        super().__init__()
        self.config, self.loss_chunk, self.plain_head = config, 0, False
        self.inner, self.depth = inner.eval(), config.n_layers

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        if self.plain_head:  # some types round their logits to float32
            return self.unembedding(self.hidden(tokens, context))
        logits: Tensor = self.inner(input_ids=tokens, **self._seen(context)).logits
        return logits

    def hidden(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, T, D): what the unembedding makes logits of."""
        hidden: Tensor = self.inner.base_model(input_ids=tokens, **self._seen(context)).last_hidden_state
        return hidden

    @property
    def embedding(self) -> nn.Embedding:
        found: nn.Embedding = self.inner.get_input_embeddings()
        return found

    @property
    def unembedding(self) -> nn.Module:
        found: nn.Module = self.inner.get_output_embeddings()
        return found

    def begin_with(self, depth: int) -> None:
        """Refused: only the native model can leave layers out."""
        raise ValueError(f"model=hf:{self.config.hf}: a model that grows has to be the native one")

    grow = begin_with

    def train(self, mode: bool = True) -> HuggingFaceModel:
        """Dropout stays off."""
        return super().train(False)

    def _seen(self, context: Tensor | None) -> dict[str, Any]:
        if context is None:
            return {"use_cache": False}
        if not self._takes_context:
            raise ValueError(
                f"model=hf:{self.config.hf}: it has no attention that a mask could limit, and an intervention asks for "
                "sequences that see only a part of their context"
            )
        return {"use_cache": False, "attention_mask": attention_mask(context)}

    @functools.cached_property
    def _takes_context(self) -> bool:
        """Whether a mask keeps everything before it from the logits; a recurrent layer would let it through."""
        tokens = torch.arange(4, device=self.embedding.weight.device)[None] % len(self.embedding.weight)
        other = tokens.clone()
        other[0, 0] = tokens[0, 1]
        mask = attention_mask(torch.tensor([[0, 0, 2, 2]], device=tokens.device))
        try:
            with torch.no_grad():
                first, second = (
                    self.inner(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 2:]
                    for ids in (tokens, other)
                )
        except (RuntimeError, ValueError, IndexError):  # a mask of this shape means nothing to it
            return False
        return torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True)


def build(config: Config, vocabulary: int, generator: torch.Generator | None) -> HuggingFaceModel:
    """The model of a run, in float32. Without a generator its weights are to be loaded, and say nothing."""
    chosen = architecture(config.model, vocabulary)
    if (positions := longest(chosen)) and positions < config.data.seq_len:
        raise ValueError(
            f"data.seq_len={config.data.seq_len}: model=hf:{config.model.hf} has {positions} positions"
            + ("" if config.model.hf_config else " (model.max_positions)")
        )
    if chosen.vocab_size < vocabulary:
        raise ValueError(
            f"model=hf:{config.model.hf} has {chosen.vocab_size} entries in its vocabulary and the text's tokenizer "
            f"{vocabulary}: choose a tokenizer of at most as many (data.vocab_size)"
        )
    seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model.pretrained and generator is not None:
            inner = _with_weights(config.model, chosen)
        else:
            inner = library().AutoModelForCausalLM.from_config(chosen, dtype=torch.float32)
    model = HuggingFaceModel(inner, config.model)
    _check(model, config)
    model.loss_chunk = config.train.loss_chunk
    if config.train.checkpointing:
        for layer in _layers(model):
            layer.forward = _recomputed(layer.forward)
    return model


def vocabulary_of(model: ModelConfig, weights: Mapping[str, Tensor]) -> int:
    """Rows of the embedding among the weights of a run's model."""
    with torch.device("meta"):
        inner = library().AutoModelForCausalLM.from_config(architecture(model, 1))
    table = inner.get_input_embeddings().weight
    name = next(name for name, p in inner.named_parameters() if p is table)
    return len(weights[f"inner.{name}"])


def _with_weights(model: ModelConfig, chosen: Any) -> Any:
    folder = Path(model.hf)
    try:
        inner, found = library().AutoModelForCausalLM.from_pretrained(
            folder,
            config=chosen,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of transformers, safetensors or the disk: whatever is wrong is in this folder
        raise ValueError(f"{folder}: its weights cannot be read: {' '.join(str(error).split())[:300]}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, found.get(what) or ())):
            words = what.removesuffix("_keys")
            raise ValueError(f"{folder}: its weights do not fit its config.json: {words} {', '.join(keys[:3])}")
    return inner


@torch.no_grad()
def _check(model: HuggingFaceModel, config: Config) -> None:
    """Refuse a model that sees later tokens. Find whether its logits are plain products with its unembedding."""
    name = f"model=hf:{config.model.hf}"
    if model.unembedding is None:
        raise ValueError(f"{name}: it has no unembedding of its own, and so is no causal language model")
    tokens = torch.arange(4)[None] % model.inner.config.vocab_size
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % model.inner.config.vocab_size
    logits = model(tokens)
    if not torch.allclose(logits[:, :-1], model(other)[:, :-1], rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ValueError(f"{name}: the logits of a position depend on later tokens, so it is no causal language model")
    model.plain_head = torch.allclose(
        model.unembedding(model.hidden(tokens)), logits, rtol=1e-5, atol=1e-6, equal_nan=True
    )
    if config.train.loss_chunk and not model.plain_head:
        raise ValueError(f"{name}: its logits are more than a product with its unembedding: train.loss_chunk must be 0")


def _layers(model: HuggingFaceModel) -> nn.ModuleList:
    """The longest list of modules: the layers."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def _recomputed(forward: Any) -> Any:
    """A layer's forward, computed again in the backward."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def check_tokenizer(model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Refuse weights that were trained on other tokens than the text's."""
    file = Path(model.hf) / "tokenizer.json"
    if not model.pretrained or not file.exists():
        return
    try:
        theirs = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{file}: cannot be read as a tokenizer: {' '.join(str(error).split())[:200]}") from error
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"model=hf:{model.hf}: its weights were trained on the tokens of {file}, and the text has others: choose "
            "that tokenizer for the text, or draw new weights with model.pretrained=false"
        )


def ingredients(model: ModelConfig) -> dict[str, Any]:
    """What decides a run's numbers beside its settings: the version of transformers, the weights it begins with."""
    found = {"transformers": version("transformers")}
    if model.pretrained:
        files = sorted(Path(model.hf).glob("*.safetensors"))
        if not files:
            raise ValueError(f"model.hf={model.hf!r}: the weights that the run begins with are not there")
        found["weights"] = _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    return found


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """sha256 of the files' contents; sizes and times tell whether it is known already."""
    whole = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
