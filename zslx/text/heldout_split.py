"""Chooses the documents that are held out: whole files, by the hash of their names, near duplicates together.

A model predicts part of a file too easily when it was trained on the rest, and likewise a file whose sibling it was
trained on (vec256_float.h, vec256_double.h). So the unit is a group of near duplicates: documents that share a quarter
of a bottom-k sketch of their longer lines (Broder 1997), joined transitively. Groups are taken in the order of the
sha256 of their first name until the domain's share is reached. Small groups are tried first, so that the held-out text
comes from many files. The choice depends on the documents alone, not on any seed.

Approximate: the sketch estimates resemblance; lines that more than 40 documents share count for nothing.

A data set may have billions of documents, too many to compare. There a document has a rank, the hash of the least line
of its sketch, and the lowest ranks of a domain are held out until its share is reached. Two documents with a share J
of their lines in common have the same rank with probability J, so copies stay together, and near duplicates mostly.
"""

from __future__ import annotations

import hashlib
import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from zslx.text.documents import Document

SHARE = 0.03  # of a domain's bytes are held out,
LEAST = 450_000  # or this many bytes (above 100,000 tokens) where that is more,
MOST = 0.1  # but never more than this share, unless the smallest file is

SKETCH = 32  # line hashes kept of a document
SHARED = 8  # of them in common make two documents near duplicates
COMMON = 40  # a line that more documents have is boilerplate

RANKS = 2**14
TRAINED = RANKS // 2  # from this rank on a document is always trained on


def target(size: int) -> float:
    """Bytes to hold out of so many."""
    return max(SHARE * size, min(LEAST, MOST * size))


def rank(text: bytes) -> int:
    """The document's rank, below RANKS, from its UTF-8 text alone."""
    lines = [stripped for line in text.split(b"\n") if len(stripped := line.strip()) >= 20]
    least = min(map(zlib.crc32, lines)) if lines else zlib.crc32(text.strip())
    return int.from_bytes(hashlib.blake2b(least.to_bytes(4), digest_size=2).digest()) * RANKS >> 16


def cutoff(sizes: NDArray[np.int64]) -> int:
    """The number of lowest ranks that are held out. sizes (RANKS,): a domain's bytes of text by rank.

    ValueError where that leaves no document on one of the sides.
    """
    wanted = target(int(sizes.sum()))
    held = sizes.cumsum()
    some = np.flatnonzero(sizes[:TRAINED])
    if not len(some) or held[some[0]] == held[-1]:
        raise ValueError("none of its documents can be held out, or all would be: it has too few")
    enough = int(np.searchsorted(held, wanted))  # the first rank with which there are enough
    last = enough if held[enough] <= 1.25 * wanted else enough - 1
    return 1 + min(max(last, int(some[0])), TRAINED - 1)


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents, each in the given order. At least one on either side, or ValueError."""
    groups = near_duplicates(documents)
    if len(groups) < 2:
        raise ValueError(
            "held-out text is split off by file, never within one, and near duplicates stay together, so a domain "
            f"needs at least two files that differ; this one has {len(documents)}"
            + (" near duplicates" if len(documents) > 1 else "")
            + f": {', '.join(d.name for d in documents[:3])}"
        )
    groups.sort(key=lambda group: hashlib.sha256(documents[group[0]].name.encode()).digest())
    sizes = [sum(documents[i].size for i in group) for group in groups]
    wanted = target(sum(sizes))
    chosen: set[int] = set()
    held = 0
    for largest in (wanted / 4, wanted):  # the second round only where the first does not find enough
        for g, size in enumerate(sizes):
            if held < wanted and g not in chosen and size <= largest and held + size <= 1.25 * wanted:
                chosen.add(g)
                held += size
    if not chosen:
        chosen.add(min(range(len(groups)), key=sizes.__getitem__))
    heldout = {i for g in chosen for i in groups[g]}
    return (
        [d for i, d in enumerate(documents) if i not in heldout],
        [d for i, d in enumerate(documents) if i in heldout],
    )


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """The documents' indices in groups, each ascending; one without a near duplicate is a group of its own."""
    holders: dict[int, list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        for line in sketch(document.blocks()):
            holders[line].append(i)
    shared: Counter[tuple[int, int]] = Counter()
    for who in holders.values():
        if 2 <= len(who) <= COMMON:
            shared.update((a, b) for n, a in enumerate(who) for b in who[n + 1 :])

    parent = list(range(len(documents)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for (a, b), count in shared.items():
        if count >= SHARED:
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(documents)):
        groups[root(i)].append(i)
    return list(groups.values())


def sketch(blocks: Iterable[str]) -> list[int]:
    """The SKETCH smallest hashes among those of the text's distinct lines of 20 characters and more, ascending."""
    smallest: list[int] = []
    for text in whole_lines(blocks):
        lines = {stripped for line in text.splitlines() if len(stripped := line.strip()) >= 20}
        smallest = heapq.nsmallest(SKETCH, {zlib.crc32(line.encode()) for line in lines}.union(smallest))
    return smallest


def whole_lines(blocks: Iterable[str]) -> Iterator[str]:
    """The same text in parts that end at line ends: what comes after the last line end waits for the next block."""
    begun: list[str] = []  # joined once, for a line may be as long as the file
    for block in blocks:
        cut = block.rfind("\n") + 1
        if cut:
            yield "".join([*begun, block[:cut]])
            begun.clear()
        begun.append(block[cut:])
    last = "".join(begun)
    begun.clear()
    yield last
