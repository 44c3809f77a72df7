"""The identity of a trial: what decides its numbers, hashed. Equal identities give bitwise equal runs on CPU.

It covers the resolved configuration without `instruments` and `run`, the source files of the interventions, the
corpus and tokenizer, NUMERICS, the torch version, device kind, dtype and threads. Instruments have a key of
their own. The git hash is recorded with a run but is no part of its identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zslx.config.run_config import Config
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.model import hugging_face
from zslx.runs.digest import digest, hashed_settings
from zslx.runs.records import read_run
from zslx.text import token_cache
from zslx.text.corpus import Corpus

# Raise by hand whenever a change to the core may change a run's numbers; tests/invariants/test_numerics.py
# fails when the numbers move and this does not.
NUMERICS = 1
COMPILED = 2  # likewise, where the numbers of runs with `train.compile` alone move
WEIGHED = 2  # likewise, of runs in which a method weights the gradients of groups


def device_kind(config: Config) -> str:
    """The device that `train.device` means on this machine: cpu, or cuda and the name of the GPU."""
    if config.train.device == "cpu" or (config.train.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError("train.device='cuda': this machine has no GPU that torch can use; allowed are auto, cpu")
    return f"cuda {torch.cuda.get_device_name()}"


def ingredients(config: Config, *, packed: bool = False) -> dict[str, Any]:
    """Everything that the identity hashes, as plain JSON values (kept in the manifest, so that it can be checked).

    `packed`: the run shares its gradient pass with others, whose sums are rounded differently.
    """
    values = hashed_settings(config.to_dict())
    methods = registry.load_spec(config.intervention, config.settings)
    values["settings"] = {m.name: {s["name"]: s["default"] for s in m.card()["settings"]} for m in methods}
    corpus = token_cache.corpus_of(config.data)
    if config.data.tokenizer:
        values["data"]["vocab_size"] = corpus.vocab_size
    values["reference"] = reference_identity(config.reference, corpus) if config.reference else ""
    sources = sorted({f for m in methods for f in registry.source_files(m)})
    return {
        "config": values,
        "sources": _digests(sources) | session_digests(methods),
        "corpus": corpus.hash,
        "numerics": NUMERICS,
        "torch": torch.__version__,
        "device": device_kind(config),
        **({"weighed": WEIGHED} if any(type(m).overrides("group_weights") for m in methods) else {}),
        **({"compiled": COMPILED} if config.train.compile else {}),
        **({"packed": True} if packed else {}),
        **(hugging_face.ingredients(config.model) if config.model.hf else {}),
    }


def _digests(files: list[Path]) -> dict[str, str]:
    """sha256 by folder and name; those of files that share both are joined."""
    found: dict[str, str] = {}
    for file in files:
        name, own = "/".join(file.parts[-2:]), hashlib.sha256(file.read_bytes()).hexdigest()
        found[name] = f"{found[name]}+{own}" if name in found else own
    return found


def session_digests(methods: Sequence[Intervention]) -> dict[str, str]:
    """sha256 by class of those that no file defines."""
    classes = {c for m in methods for c in registry.session_classes(type(m))}
    return {f"session/{c.__qualname__}": hashlib.sha256(registry.class_source(c).encode()).hexdigest() for c in classes}


def reference_identity(folder: str, corpus: Corpus) -> str:
    """The identity of the run that serves as reference model; its tokens must be those of `corpus`."""
    run = read_run(folder)
    if run.status != "finished":
        raise ValueError(f"reference={folder}: that run is {run.status}, not finished")
    data = Config.from_dict(run.config).data
    other = token_cache.corpus_of(data)
    if other.folder != corpus.folder and other.tokenizer.to_str() != corpus.tokenizer.to_str():
        raise ValueError(
            f"reference={folder}: that run has another tokenizer (data.path={data.path!r}, data.vocab_size="
            f"{data.vocab_size}), so its losses are of other tokens: train the reference with those of this run"
        )
    if "identity" not in run.manifest:
        raise ValueError(f"reference={folder}: manifest.json does not say which run it is: identity is missing")
    name: str = run.manifest["identity"]
    return name


def identity(config: Config, *, packed: bool = False) -> str:
    """16 hex digits that name a trial."""
    return digest(ingredients(config, packed=packed))
