"""Tokenizers from elsewhere: their vocabulary, their end of text, their tokens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import zslx
from tests.text.made_data_sets import ROWS, parquet, prepared, texts
from tests.text.made_text import verse
from zslx.config.groups import DataConfig
from zslx.config.run_config import Config, override
from zslx.runs.identity import ingredients
from zslx.testing.subject import BLIND, TINY
from zslx.text import token_cache, tokenizer
from zslx.text.loader import ForeignStreams, Loader

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A tokenizer.json from elsewhere: its end of text is not 0, it adds tokens of its own and cuts long texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([str(row["text"]) for row in ROWS], trainer)
    made.add_special_tokens([AddedToken("</s>", special=True)])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 350)])
    made.enable_truncation(16)
    made.enable_padding(length=20)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_given_tokenizer_fixes_the_vocabulary_and_its_tokens_are_its_own(bpe: Path, tmp_path: Path) -> None:
    path = parquet(tmp_path / "set")
    corpus = prepared(path, tmp_path / "cache", tokenizer=str(bpe), vocab_size=0, domain_column="")
    assert corpus.vocab_size == len(corpus.token_counts) == 351 and corpus.end_of_text == 350
    original, _ = tokenizer.given(str(bpe))
    first = texts(corpus, corpus.train[0])[0]
    assert len(first) > 40
    ids = original.encode(first, add_special_tokens=False).ids
    assert np.asarray(corpus.train[0])[: len(ids) + 1].tolist() == [*ids, 350]
    for wrong in (400, 350):
        with pytest.raises(
            ValueError, match=rf"data\.vocab_size={wrong}: .* has 351 entries, and they are the vocabulary"
        ):
            prepared(path, tmp_path / "cache", tokenizer=str(bpe), vocab_size=wrong, domain_column="")
    streams = ForeignStreams(corpus)
    assert len(streams) == 1
    with pytest.raises(ValueError, match="those of this text end with 350"):
        streams[0]
    loader = Loader(corpus, seed=0, batch_size=2, seq_len=8)
    with pytest.raises(ValueError, match="those of this text end with 350"):
        loader.batch(1, choose=lambda walk: walk.streams[0])


def test_text_files_take_a_given_tokenizer_too(bpe: Path, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{i}.txt").write_text(verse(i, 30))
    data = DataConfig(path=str(tmp_path / "text"), tokenizer=str(bpe), vocab_size=0)
    corpus = token_cache.corpus_of(data, cache=tmp_path / "cache")
    assert corpus.end_of_text == 350 and corpus.vocab_size == 351
    assert {*texts(corpus, corpus.train[0]), *texts(corpus, corpus.heldout[0])} == {verse(i, 30) for i in range(4)}
    plain = token_cache.corpus_of(dataclasses.replace(data, tokenizer="", vocab_size=351), cache=tmp_path / "cache")
    assert plain.folder != corpus.folder and plain.end_of_text == 0


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(70_000)} | {"</s>": 70_000}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    rows = [{"text": " ".join(f"w{(i * 97 + j) % 70_000}" for j in range(30))} for i in range(700)]
    path, file = parquet(tmp_path / "set", rows), str(tmp_path / "words.json")  # type: ignore[arg-type]
    corpus = prepared(path, tmp_path / "cache", tokenizer=file, vocab_size=0, domain_column="")
    assert corpus.train[0].dtype == np.uint32 and corpus.vocab_size == 70_001
    tokens = np.concatenate([*map(np.asarray, corpus.train), *map(np.asarray, corpus.heldout)])
    assert (tokens == 70_000).sum() == 700 and (np.sort(tokens)[:-700] > 2**16).any()


@pytest.mark.parametrize("content, message", [("{}", "is no tokenizer.json"), (None, "no token that ends a document")])
def test_a_file_that_is_no_tokenizer_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    file = tmp_path / "tokenizer.json"
    file.write_text(content) if content else Tokenizer(models.BPE()).save(str(file))
    with pytest.raises(ValueError, match=message):
        tokenizer.given(str(file))
    with pytest.raises(ValueError, match="no such file or folder"):
        tokenizer.given(str(tmp_path / "other.json"))


@pytest.mark.medium
def test_a_folder_of_transformers_gives_the_tokens_that_it_gives_to_anyone(bpe: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "pretrained"
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(bpe), eos_token="</s>").save_pretrained(folder)
    own, end = tokenizer.given(str(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = verse(1) + " </s>"
    assert end == theirs.eos_token_id == 350 and tokenizer.entries(own) == len(theirs)
    assert own.encode(verse(1), add_special_tokens=False).ids == theirs.encode(verse(1), add_special_tokens=False)
    assert 350 not in own.encode(text, add_special_tokens=False).ids  # inside a text it is text
    with pytest.raises(ValueError, match=r"data\.tokenizer='owner/name': "):
        tokenizer.given("owner/name")


# -------------------------------------------------------------------------------------------------- training


@pytest.mark.usefixtures("cache")
def test_a_run_on_a_data_set_records_what_it_read(bpe: Path, tmp_path: Path) -> None:
    path = parquet(tmp_path / "set")
    values = {key: value for key, value in (TINY | BLIND).items() if key not in ("data.vocab_size", "data.path")}
    values |= {"data.path": path, "data.domain_column": "meta.source", "data.tokenizer": str(bpe), "train.steps": 3}
    config = override(Config(), values.items())
    assert config.data.vocab_size == 0
    manifest = zslx.train(config, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert manifest["status"] == "finished" and recorded["data"]["vocab_size"] == 351
    assert manifest["data_set"] == {"kind": "parquet", "config": "default", "split": "train", "skipped": 0}
    assert not {"path", "tokenizer", "domain_column"} & set(manifest["ingredients"]["config"]["data"])
    moved = shutil.move(tmp_path / "set", tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, path=f"hf:{moved}"))
    assert ingredients(elsewhere) == manifest["ingredients"]
