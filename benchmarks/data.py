"""What the text costs and what it is: `python -m benchmarks.data [--prepare]`.

Batches: median time of `Loader.batch` against a training step of 30 ms (the smallest laptop model on one core).
Domains: tokens, and bigram cross-entropies in nats between them: training domain by row, held-out text by column,
interpolated with the unigram of the same domain (weights 0.8, 0.2 and add-one).
`--prepare` also times the preparation of the embedded corpus from nothing, in a cache of its own.
`--large` writes a file of 318 MB, prepares it in a process of its own and prints that process's peak memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from zslx.text import token_cache
from zslx.text.loader import Loader

STEP_MS = 30.0


def batch_time(corpus: token_cache.Corpus, batch_size: int, seq_len: int, mixture: list[float] | None) -> float:
    """Median milliseconds of a batch over 500 steps, the first 50 left out."""
    loader = Loader(corpus, seed=0, batch_size=batch_size, seq_len=seq_len)
    times = []
    for step in range(1, 551):
        start = time.perf_counter()
        loader.batch(step, mixture=mixture)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[50:])


def cross_entropies(corpus: token_cache.Corpus) -> np.ndarray:
    """(D, D) nats per held-out token of domain j under the bigram model of domain i."""
    size, result = corpus.vocab_size, np.empty((len(corpus.domains),) * 2)
    for i, train in enumerate(corpus.train):
        ids = np.asarray(train, dtype=np.int64)
        unigram = (np.bincount(ids, minlength=size) + 1) / (len(ids) + size)
        pairs = np.bincount(ids[:-1] * size + ids[1:], minlength=size * size).reshape(size, size)
        before = np.maximum(pairs.sum(1), 1)
        for j, heldout in enumerate(corpus.heldout):
            held = np.asarray(heldout, dtype=np.int64)
            bigram = pairs[held[:-1], held[1:]] / before[held[:-1]]
            result[i, j] = -np.log(0.8 * bigram + 0.2 * unigram[held[1:]]).mean()
    return result


PREPARE = """
import resource, sys
from zslx.text import token_cache
token_cache.prepare(sys.argv[1], 2048, cache=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def large() -> None:
    """Prepare a file of 318 MB beside a small one (what is held out is whole files)."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.mkdir()
        write_words(text / "large.txt", 318_000_000, seed=0)
        write_words(text / "small.txt", 2_000_000, seed=1)
        start = time.perf_counter()
        command = [sys.executable, "-c", PREPARE, str(text), f"{folder}/cache"]
        kilobytes = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"\n318 MB prepared in {time.perf_counter() - start:.0f} s, peak memory {kilobytes / 1e6:.2f} GB")


def write_words(file: Path, size: int, seed: int) -> None:
    """At least `size` bytes of lines of twelve words, drawn by Zipf's law from 20,000."""
    draw = np.random.default_rng(seed)
    words = np.array(["".join(map(chr, draw.integers(97, 123, size=n))) for n in draw.integers(2, 11, size=20_000)])
    with file.open("w") as stream:
        while stream.tell() < size:
            ids = np.minimum(draw.zipf(1.3, size=(20_000, 12)) - 1, len(words) - 1)
            stream.write("\n".join(" ".join(line) for line in words[ids]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="time the preparation from nothing, too")
    parser.add_argument("--large", action="store_true", help="measure the memory that a large file takes, too")
    parser.add_argument("--vocab-size", type=int, default=2048)
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    if arguments.prepare:
        with tempfile.TemporaryDirectory() as cache:
            start, used = time.perf_counter(), time.process_time()
            token_cache.prepare(vocab_size=arguments.vocab_size, cache=cache)
            wall, used = time.perf_counter() - start, time.process_time() - used
            print(f"\nprepared from nothing in {wall:.1f} s ({used:.1f} s of processor time)")
    if arguments.large:
        large()
    corpus = token_cache.prepare(vocab_size=arguments.vocab_size)
    start = time.perf_counter()
    token_cache.prepare(vocab_size=arguments.vocab_size)
    print(f"opened from the cache in {1000 * (time.perf_counter() - start):.0f} ms\n")

    print("| batch | mixture | ms | share of a 30 ms step |\n|---|---|---|---|")
    for batch_size, seq_len in ((16, 64), (32, 128), (64, 256)):
        for name, mixture in (("balanced", None), ("given", [0.4, 0.3, 0.2, 0.1])):
            ms = batch_time(corpus, batch_size, seq_len, mixture)
            print(f"| {batch_size} × {seq_len} | {name} | {ms:.3f} | {ms / STEP_MS:.1%} |")

    print("\n| domain | training tokens | held-out tokens |\n|---|---|---|")
    for name, train, heldout in zip(corpus.domains, corpus.train, corpus.heldout, strict=True):
        print(f"| {name} | {len(train):,} | {len(heldout):,} |")
    print("\n| bigrams of ↓, text of → | " + " | ".join(corpus.domains) + " |\n|" + "---|" * (len(corpus.domains) + 1))
    for name, row in zip(corpus.domains, cross_entropies(corpus), strict=True):
        print(f"| {name} | " + " | ".join(f"{nats:.2f}" for nats in row) + " |")


if __name__ == "__main__":
    main()
