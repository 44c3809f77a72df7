"""Tokenizers: a byte-level BPE trained on the training documents, or one that was made elsewhere.

The BPE encodes any text and decodes to the same text again. Words are cut by GPT-2's pattern and every byte is in the
alphabet, so nothing is unknown and nothing is normalised. Token 0 is `<|endoftext|>`, appended to each document; the
same characters inside a text are ordinary text.
Documents longer than a megabyte are encoded in pieces that end at line ends. A run of more than RUN characters without
a break (a minified script, base64, thousands of blank lines) would be one word to the BPE, whose training takes the
square of its length: it is cut every RUN characters.

A tokenizer from elsewhere (`given`) is a tokenizer.json, its folder, or a name on the hub. It gives the tokens that it
gives to anyone: of long documents it, too, gets pieces, but runs are not cut, and it adds no tokens but the end.

Training repeats bit for bit, whatever the number of threads. Cost on one core: 2.7 s for 12 MB of text; encoding
1.1 million tokens a second.
"""

from __future__ import annotations

import array
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from zslx.text.documents import Document, Domain

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # the bytes and END_OF_TEXT
TRAINING_BYTES = 12_000_000  # of text, in equal parts from the domains
RUN = 1000  # characters: the longest word
LONG_RUN = re.compile(rf"(?<!\S)\S{{{RUN + 1},}}|(?<!\s)\s{{{RUN + 1},}}")
BLANK_RUN = re.compile(rf"\s{{{RUN + 1}}}")
PIECE = 1_000_000  # characters encoded at once: longer documents are cut at line ends


def trained(domains: Sequence[Domain], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries (fewer where the text has no more pairs to merge)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(domains), trainer)
    return tokenizer


def opened(file: Path) -> Tokenizer:
    return _plain(Tokenizer.from_str(file.read_text(encoding="utf-8")))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # not saved with it: END_OF_TEXT inside a text stays text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# What ends a text in a tokenizer.json, which does not say so itself.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


def given(spec: str) -> tuple[Tokenizer, int]:
    """The tokenizer of a `data.tokenizer`, and the token that ends a document. ValueError where there is none.

    `spec` is the path of a tokenizer.json, of a folder as `save_pretrained` writes it, or a name on the hub, with
    @REVISION or without. The last two are read by `transformers`, and no code of theirs is run.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # of the Rust library, which has no class of its own
            raise ValueError(f"data.tokenizer={spec!r} is no tokenizer.json: {error}") from error
        end = next((i for i in map(tokenizer.token_to_id, ENDS) if i is not None), None)
        allowed = f"one of {', '.join(ENDS)}"
    else:
        pretrained = _pretrained(spec, path)
        tokenizer = Tokenizer.from_str(pretrained.backend_tokenizer.to_str())
        end = pretrained.eos_token_id if pretrained.eos_token_id is not None else pretrained.sep_token_id
        allowed = "an eos_token or a sep_token"
    if end is None:
        raise ValueError(f"data.tokenizer={spec!r} has no token that ends a document: it needs {allowed}")
    return _plain(tokenizer), int(end)


def _pretrained(spec: str, path: Path) -> Any:
    if not path.exists() and (spec.startswith(("/", ".", "~")) or spec.count("/") > 1 or spec.endswith(".json")):
        raise ValueError(f"data.tokenizer={spec!r}: no such file or folder")
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        raise ValueError(f"data.tokenizer={spec!r} needs the package transformers: pip install 'zslx[hf]'") from None
    name, _, revision = (str(path), "", "") if path.exists() else spec.partition("@")
    try:
        pretrained = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"data.tokenizer={spec!r}: {first}") from error
    if not getattr(pretrained, "is_fast", False):
        raise ValueError(f"data.tokenizer={spec!r} has no fast form (tokenizer.json), which is the one that is used")
    return pretrained


def entries(tokenizer: Tokenizer) -> int:
    """The size of the vocabulary: one more than the highest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def _sample(domains: Sequence[Domain]) -> Iterator[str]:
    """Documents in the order of their digests, from each domain until it has given its part."""
    part = TRAINING_BYTES // len(domains)
    for domain in domains:
        size = 0
        for document in sorted(domain.documents, key=lambda d: d.digest):
            for piece in pieces(document.blocks()):
                if size >= part:
                    break
                yield piece
                size += len(piece.encode())
            if size >= part:
                break


def encoded(
    tokenizer: Tokenizer, documents: Iterable[Document], end: int = 0, runs: bool = True
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(bytes of text, its tokens) for some MB of text at a time; each document ends with the token `end`.

    `runs`: long runs are cut.
    """
    batch: list[str | None] = []  # None: a document ends here
    size = 0
    for document in documents:
        for piece in pieces(document.blocks(), runs):
            batch.append(piece)
            size += len(piece.encode())
            if size >= 4 * PIECE:
                yield size, _encode(tokenizer, batch, end)
                batch, size = [], 0
        batch.append(None)
    if batch:
        yield size, _encode(tokenizer, batch, end)


def _encode(tokenizer: Tokenizer, batch: Sequence[str | None], end: int) -> NDArray[np.uint32]:
    encodings = iter(encode_all(tokenizer, [piece for piece in batch if piece is not None]))
    tokens = array.array("I")
    for piece in batch:
        tokens.extend([end] if piece is None else next(encodings).ids)
    return np.array(tokens, dtype=np.uint32)


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """The encodings of texts, on all cores; other threads of Python run meanwhile."""
    return tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def pieces(blocks: Iterable[str], runs: bool = True) -> Iterator[str]:
    """The text in parts of at most PIECE characters, cut after a line end where there is one, and within long runs."""
    cut_runs = _without_long_runs if runs else lambda text: [text]
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > PIECE:
            cut = rest.rfind("\n", 0, PIECE) + 1 or PIECE
            yield from cut_runs(rest[:cut])
            rest = rest[cut:]
    yield from cut_runs(rest)


def _without_long_runs(text: str) -> list[str]:
    """The text in parts within which no run of text or of white space is longer than RUN characters."""
    # LONG_RUN looks back at every character; nearly no text has a long line, and nearly none of those a long run.
    if max(map(len, text.split("\n"))) <= RUN and not BLANK_RUN.search(text):
        return [text]
    cuts = [at for run in LONG_RUN.finditer(text) for at in range(run.start() + RUN, run.end(), RUN)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@contextmanager
def parallelism() -> Iterator[None]:
    """Threads while the text is prepared, and silence afterwards.

    A process that has used the tokenizers' threads and forks later (Ray's workers do) gets a warning on stderr,
    and its child may wait for threads that it does not have. Unless the user's environment decides otherwise,
    the threads are therefore switched off again at the end.
    """
    variable = "TOKENIZERS_PARALLELISM"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = "true"
    try:
        yield
    finally:
        os.environ[variable] = "false"
