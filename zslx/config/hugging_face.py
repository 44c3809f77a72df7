"""Architectures of transformers, as settings of a run.

    model=hf:gpt2      a type of model that transformers knows, at the size of `model.d_model`, `model.n_layers`,
                       `model.n_heads`, `model.max_positions` and `model.vocab_size`; all else in its type's proportions
    model=hf:FOLDER    the architecture of FOLDER/config.json, and its weights where FOLDER has *.safetensors

A folder is read once: its config.json becomes the setting `model.hf_config`, so that a run folder says by itself what
it holds. Nothing is downloaded, and no code of a folder is run.
"""

from __future__ import annotations

import difflib
import importlib
import json
from pathlib import Path
from typing import Any

from zslx.config.groups import ModelConfig

Architecture = Any  # a PretrainedConfig of transformers, which is imported where it is needed
PREFIX = "hf:"
# What says where a configuration came from, or names code; all else decides what is computed.
NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "auto_map", "dtype", "torch_dtype", "use_cache")


def from_name(name: str) -> ModelConfig:
    """The settings of `hf:gpt2` or `hf:FOLDER`, without its prefix."""
    folder = Path(name)
    if folder.is_dir():
        return _of_folder(folder)
    known = _types()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        raise ValueError(
            f"model=hf:{name}: neither a folder nor a causal language model that transformers knows; "
            + (f"did you mean {', '.join(close)}? " if close else "")
            + "A model of the hub has to be in a folder: hf download NAME --local-dir FOLDER"
        )
    has_heads = _value(_made(name, {}), "num_attention_heads")
    return ModelConfig(hf=name, n_heads=ModelConfig.n_heads if has_heads else 1)


def _of_folder(folder: Path) -> ModelConfig:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"model=hf:{folder}: there is no config.json in the folder") from None
    except ValueError:
        raise ValueError(f"{file}: not JSON") from None
    if not isinstance(found, dict) or found.get("model_type") not in _types():
        kind = found.get("model_type") if isinstance(found, dict) else None
        raise ValueError(f"{file}: model_type={kind!r} is no causal language model that transformers knows")
    values = {key: value for key, value in found.items() if key not in NOT_ARCHITECTURE}
    text = json.dumps(values, sort_keys=True)
    sizes: dict[str, Any] = sizes_of(_read(text, str(file)))
    pretrained = any(folder.glob("*.safetensors"))
    if not pretrained and (others := sorted(folder.glob("*.bin"))):
        raise ValueError(f"{others[0]}: weights are read from *.safetensors alone")
    return ModelConfig(hf=str(folder.absolute()), hf_config=text, pretrained=pretrained, **sizes)


def architecture(model: ModelConfig, vocabulary: int) -> Architecture:
    """What transformers builds the model of. `vocabulary`: rows of the embedding where the settings name none."""
    if model.hf_config:
        config = _read(model.hf_config, f"model.hf_config of {model.hf}")
    else:
        config = _made(model.hf, _scaled(model, vocabulary))
    for key, value in sizes_of(config).items():
        own = getattr(model, key)
        if own != value and (key != "vocab_size" or own):
            place = f"fixed by its config.json at {value}" if model.hf_config else f"{value} in every {model.hf}"
            raise ValueError(f"model.{key}={own}: of model=hf:{model.hf} it is {place}")
    config.use_cache = False
    return config


def sizes_of(config: Architecture) -> dict[str, int]:
    """The sizes of an architecture by the names that they have here."""
    found = {
        "d_model": _value(config, "hidden_size"),
        "n_layers": _value(config, "num_hidden_layers"),
        "n_heads": _value(config, "num_attention_heads") or 1,
        "max_positions": longest(config) or ModelConfig.max_positions,
        "vocab_size": _value(config, "vocab_size"),
    }
    return {key: value for key, value in found.items() if value}


def longest(config: Architecture) -> int | None:
    """Positions that the architecture has; None where their number has no limit."""
    return _value(config, "max_position_embeddings")


def _scaled(model: ModelConfig, vocabulary: int) -> dict[str, Any]:
    """What a type is made with: the sizes asked for, and what its default makes of them by proportion."""
    usual = _made(model.hf, {})
    given = {
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "vocab_size": model.vocab_size or vocabulary,
        "pad_token_id": None,  # every token of a text counts
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if heads := _value(usual, "num_attention_heads"):
        given["num_attention_heads"] = model.n_heads
        if shared := _value(usual, "num_key_value_heads"):
            given["num_key_value_heads"] = max(1, model.n_heads * shared // heads)
        if _value(usual, "head_dim"):
            given["head_dim"] = model.d_model // model.n_heads
    if _value(usual, "max_position_embeddings"):
        given["max_position_embeddings"] = model.max_positions
    if width := _value(usual, "intermediate_size"):
        given["intermediate_size"] = model.d_model * width // int(usual.hidden_size)
    return given


def _types() -> set[str]:
    """The types of model that have a causal language model in transformers."""
    transformers = library()
    names: set[str] = set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return names


def _made(kind: str, values: dict[str, Any]) -> Any:
    try:
        return library().AutoConfig.for_model(kind, **values)
    except Exception as error:  # whatever a type raises where sizes do not fit each other
        raise ValueError(f"model=hf:{kind}: transformers refuses the sizes: {_line(error)}") from error


def _read(text: str, where: str) -> Any:
    values = json.loads(text)
    try:
        return library().AutoConfig.for_model(**values)
    except Exception as error:
        raise ValueError(f"{where}: transformers refuses it: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _value(config: Any, name: str) -> int | None:
    """A number that an architecture has under this name, or under the one that its type gives it; else None."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def library() -> Any:
    """transformers, quiet and offline; ValueError where it is not installed."""
    try:
        transformers: Any = importlib.import_module("transformers")  # by name: its sources are not ours to check
        importlib.import_module("transformers.models.auto.modeling_auto")
    except ImportError as error:
        raise ValueError("model=hf:… needs transformers: pip install 'zslx[hf]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
