"""Roles of parameters: the part of the transformer (attention, mlp, norm, embedding, unembedding or other) and the
layer. Results are broken down by these.

Parts are read from module types and from the names that public models use. A matrix tied to the embedding counts as
embedding. The body is the matrices of attention and MLP; interference is usually quoted for the body. Where a model's
names say nothing, `body_of` takes every matrix but embeddings, unembeddings and norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

GROUPS = ("attention", "mlp", "norm", "embedding", "unembedding", "other")
_NORM = re.compile(r"norm|(^|[._])ln(_|\d|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|(^|[._])att_proj", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|(^|\.)(fc[12]|fc_in|fc_out|ff_proj|ff_out)$", re.IGNORECASE)
_HEAD = re.compile(r"^(unembedding|lm_head|head|embed_out|output|ff_out)$|\.(lm_head|embed_out|transformer\.ff_out)$")


@dataclass(frozen=True, kw_only=True)
class Role:
    """`group` of GROUPS; `layer` counted from 0, None outside the layers; `body`: a matrix of a layer."""

    group: str
    layer: int | None
    body: bool


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """Parameter name to role, for the names of `model.named_parameters()`."""
    modules = dict(model.named_modules())
    roles = {}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        module = modules[path]
        layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
        group = _group(path.replace("_orig_mod.", ""), module)
        body = group in ("attention", "mlp") and parameter.ndim >= 2
        roles[name.replace("_orig_mod.", "")] = Role(group=group, layer=layer, body=body)
    return roles


def body_of(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that interference is quoted for: the body; where no name tells, the other matrices, or all."""
    names, roles, parameters = list(names), parameter_roles(model), dict(model.named_parameters())
    body = [name for name in names if roles[name].body]
    others = [name for name in names if roles[name].group == "other" and parameters[name].ndim >= 2]
    return tuple(body or others or names)


def _group(path: str, module: nn.Module) -> str:
    last = path.rpartition(".")[2]
    if isinstance(module, nn.Embedding):
        return "embedding"
    if _NORM.search(last) or "Norm" in type(module).__name__:
        return "norm"
    if _HEAD.search(path):
        return "unembedding"
    if _ATTENTION.search(path):
        return "attention"
    return "mlp" if _MLP.search(path) else "other"
