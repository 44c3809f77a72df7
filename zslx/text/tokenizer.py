"""Byte-level BPE: trained on the training documents, it encodes any text and decodes to the same text again.

Words are cut by GPT-2's pattern and every byte is in the alphabet, so nothing is unknown and nothing is
normalised. Token 0 is `<|endoftext|>`, appended to each document; the same characters inside a text are ordinary
text. Documents longer than a megabyte are encoded in pieces that end at line ends. A run of more than RUN characters
without a break (a minified script, base64, thousands of blank lines) would be one word to the BPE, whose training takes
the square of its length: it is cut every RUN characters.

Training repeats bit for bit, whatever the number of threads. Cost on one core: 2.7 s for 12 MB of text; encoding
1.1 million tokens a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    tokenizer.encode_special_tokens = True  # not saved with it: END_OF_TEXT inside a text stays text
    return tokenizer


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


def encoded(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(bytes of text, its tokens) for some MB of text at a time; each document ends with END_OF_TEXT."""
    batch: list[str | None] = []  # None: a document ends here
    size = 0
    for document in documents:
        for piece in pieces(document.blocks()):
            batch.append(piece)
            size += len(piece.encode())
            if size >= 4 * PIECE:
                yield size, _encode(tokenizer, batch)
                batch, size = [], 0
        batch.append(None)
    if batch:
        yield size, _encode(tokenizer, batch)


def _encode(tokenizer: Tokenizer, batch: Sequence[str | None]) -> NDArray[np.uint32]:
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None
    encodings = iter(tokenizer.encode_batch_fast([piece for piece in batch if piece is not None]))
    tokens: list[int] = []
    for piece in batch:
        tokens += [end] if piece is None else next(encodings).ids
    return np.array(tokens, dtype=np.uint32)


def pieces(blocks: Iterable[str]) -> Iterator[str]:
    """The text in parts of at most PIECE characters, cut after a line end where there is one, and within long runs."""
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > PIECE:
            cut = rest.rfind("\n", 0, PIECE) + 1 or PIECE
            yield from _without_long_runs(rest[:cut])
            rest = rest[cut:]
    yield from _without_long_runs(rest)


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
