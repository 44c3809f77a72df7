"""Which part of a language model a parameter belongs to, and in which layer, read off its name.

The parts are attention, mlp, norms, embedding, positions, unembedding and other. A tied matrix is one parameter
under its first name: it counts as embedding, and there is no unembedding. `body` is everything but the tables
(embedding, positions, unembedding): the paper's choice for gradient interference.

Known are the names of zslx's own model and, by patterns, those of Hugging Face's decoders (GPT-2, GPT-NeoX and
Pythia, OPT, BLOOM, Llama and its relatives, OLMo). A name that fits none is `other`, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first pattern found in the name decides. Norms first: a block's attention norm is a norm.
PATTERNS = (
    ("norms", r"(^|[._])(\w*norm\w*|ln_?\d+|ln_(f|attn|mlp|1|2)|layernorm\w*)\.(weight|bias|gain)$"),
    ("unembedding", r"(^|\.)(unembedding|lm_head|embed_out|output_embedding)\.|(^|\.)transformer\.ff_out\."),
    ("positions", r"(^|\.)(position_embeddings?|embed_positions|wpe|position_embed)\."),
    ("embedding", r"(^|\.)(embedding|embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\."),
    ("attention", r"(^|\.)(attention|attn|self_attn|self_attention|att_proj|attn_out)\."),
    ("mlp", r"(^|\.)(mlp|ffn|feed_forward|fc1|fc2|ff_proj|ff_out)\."),
)
TABLES = ("embedding", "positions", "unembedding")


def part(name: str) -> str:
    """attention, mlp, norms, embedding, positions, unembedding or other."""
    return next((group for group, pattern in PATTERNS if re.search(pattern, name)), "other")


def layer(name: str) -> int | None:
    """The block that the parameter lies in, None outside the blocks."""
    found = re.search(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def by_group(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by part, and `body`: those outside the tables."""
    names = list(names)
    found: dict[str, list[str]] = {"body": [name for name in names if part(name) not in TABLES]}
    for name in names:
        found.setdefault(part(name), []).append(name)
    return {key: members for key, members in found.items() if members}


def by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by layer ("0", "1", ...), those outside the blocks left out."""
    found: dict[int, list[str]] = {}
    for name in names:
        if (at := layer(name)) is not None:
            found.setdefault(at, []).append(name)
    return {str(at): found[at] for at in sorted(found)}
