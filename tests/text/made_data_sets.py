"""Data sets that tests make, in every format, and the text that is prepared of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.text.made_text import verse
from zslx.config.groups import DataConfig
from zslx.text import token_cache
from zslx.text.corpus import Corpus

datasets = pytest.importorskip("datasets")


def made(count: int = 600) -> list[dict[str, object]]:
    """Rows of two domains, in a nested column, with documents of different lengths."""
    return [{"text": verse(i, 1 + i % 7), "n": i, "meta": {"source": "ab"[i % 3 == 0]}} for i in range(count)]


ROWS = made()


def parquet(folder: Path, rows: list[dict[str, object]] = ROWS) -> str:
    folder.mkdir(parents=True)
    for i, at in enumerate(range(0, len(rows), 250)):
        pa.parquet.write_table(pa.Table.from_pylist(rows[at : at + 250]), folder / f"{i}.parquet", row_group_size=70)
    return f"hf:{folder}"


def json_lines(folder: Path, rows: list[dict[str, object]] = ROWS) -> str:
    folder.mkdir(parents=True)
    for i, at in enumerate(range(0, len(rows), 250)):
        with gzip.open(folder / f"{i}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[at : at + 250])
    return f"hf:{folder}/*.jsonl.gz"


def saved(folder: Path, rows: list[dict[str, object]] = ROWS) -> str:
    """A folder as `save_to_disk` writes it."""
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(folder, num_shards=2)
    return f"hf:{folder}"


def splits(folder: Path, rows: list[dict[str, object]] = ROWS) -> str:
    """A folder with two splits, laid out as the hub lays it out."""
    parquet(folder / "all", rows)
    (folder / "data").mkdir()
    for file in (folder / "all").iterdir():
        file.rename(folder / "data" / f"train-{file.name}")
    (folder / "all").rmdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows[:9]), folder / "data" / "test-0.parquet")
    return f"hf:{folder}"


FORMATS = (parquet, json_lines, saved, splits)


def prepared(path: str, cache: Path, **values: object) -> Corpus:
    given = {"vocab_size": 400, "domain_column": "meta.source"} | values
    return token_cache.corpus_of(DataConfig(path=path, **given), cache=cache)  # type: ignore[arg-type]


def texts(corpus: Corpus, stream: np.ndarray) -> list[str]:
    ends = np.flatnonzero(np.asarray(stream) == corpus.end_of_text)
    assert ends[-1] == len(stream) - 1
    return [corpus.tokenizer.decode(part[:-1].tolist()) for part in np.split(np.asarray(stream), ends + 1)[:-1]]


def files(corpus: Corpus) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in corpus.folder.iterdir()}
