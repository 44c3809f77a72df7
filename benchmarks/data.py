"""What the text costs and what it is: `python -m benchmarks.data [--prepare]`.

Batches: median time of `Loader.batch` against a training step of 30 ms (the smallest laptop model on one core).
Domains: tokens, and bigram cross-entropies in nats between them: training domain by row, held-out text by column,
interpolated with the unigram of the same domain (weights 0.8, 0.2 and add-one).
`--prepare` also times the preparation of the embedded corpus from nothing, in a cache of its own.
`--data-set` tokenises Parquet files of the embedded text as a data set, and the same texts
by the bare tokenizer, in turns: tokens a second, by the clock and by the processor's time of all threads.
`--large` writes a file of 318 MB, prepares it in a process of its own and prints that process's peak memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from zslx.config.groups import DataConfig
from zslx.text import builtin, data_set, token_cache, tokenizer
from zslx.text.corpus import Corpus
from zslx.text.documents import Domain, document_of
from zslx.text.loader import Loader

STEP_MS = 30.0


def batch_time(corpus: Corpus, batch_size: int, seq_len: int, mixture: list[float] | None) -> float:
    """Median milliseconds of a batch over 500 steps, the first 50 left out."""
    loader = Loader(corpus, seed=0, batch_size=batch_size, seq_len=seq_len)
    times = []
    for step in range(1, 551):
        start = time.perf_counter()
        loader.batch(step, mixture=mixture)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[50:])


def cross_entropies(corpus: Corpus) -> np.ndarray:
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
from zslx.text.corpus import Corpus
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


def data_set_rate(vocab_size: int, rounds: int = 3) -> None:
    """Tokens a second of a data set's preparation and of the bare tokenizer, medians of rounds in turns."""
    import pyarrow
    import pyarrow.parquet
    import tokenizers

    with tempfile.TemporaryDirectory() as folder, tokenizer.parallelism():
        texts = [document.text for domain in builtin.domains() for document in domain.documents]
        made = tokenizer.trained([Domain(name="", documents=tuple(map(document_of, texts, texts)))], vocab_size)
        made.save(f"{folder}/tokenizer.json")
        (Path(folder) / "set").mkdir()
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), f"{folder}/set/0.parquet", row_group_size=1000)
        data = DataConfig(path=f"hf:{folder}/set", tokenizer=f"{folder}/tokenizer.json", vocab_size=0)
        data_set.found(data.path)  # imports
        rates: dict[str, list[tuple[float, float]]] = {"bare tokenizer": [], "data set": []}
        batches = [texts[i : i + 400] for i in range(0, len(texts), 400)]
        for r in range(rounds):
            bpe = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
            start, used, tokens = time.perf_counter(), time.process_time(), 0
            for batch in batches:
                tokens += sum(map(len, tokenizer.encode_all(bpe, batch)))
            rates["bare tokenizer"].append(_rates(tokens, start, used))
            start, used = time.perf_counter(), time.process_time()
            corpus = token_cache.corpus_of(data, cache=f"{folder}/{r}", progress=False)
            tokens = sum(map(len, (*corpus.train, *corpus.heldout)))
            rates["data set"].append(_rates(tokens, start, used))
            shutil.rmtree(f"{folder}/{r}")
    print(f"\n{tokens:,} tokens of {sum(map(len, texts)) / 1e6:.0f} MB, vocabulary {corpus.vocab_size:,}")
    print("| | million tokens a second | a second of processor time |\n|---|---|---|")
    pairs = list(zip(rates["data set"], rates["bare tokenizer"], strict=True))
    rates["ratio"] = [(own[0] / bare[0], own[1] / bare[1]) for own, bare in pairs]
    for name, found in rates.items():
        clock, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {clock:.2f} | {processor:.2f} |")


def _rates(tokens: int, start: float, used: float) -> tuple[float, float]:
    """Millions of tokens a second: by the clock, and by the processor's."""
    return tokens / (time.perf_counter() - start) / 1e6, tokens / (time.process_time() - used) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="time the preparation from nothing, too")
    parser.add_argument("--large", action="store_true", help="measure the memory that a large file takes, too")
    parser.add_argument("--data-set", action="store_true", help="measure the tokens a second of a data set, and stop")
    parser.add_argument("--vocab-size", type=int, default=2048)
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    if arguments.data_set:
        return data_set_rate(arguments.vocab_size)
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
