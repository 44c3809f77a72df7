"""Tokens of text files: exact round trips, held-out text unseen, the embedded text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.text.made_text import prepare, prose
from zslx.text import documents, heldout_split, token_cache, tokenizer
from zslx.text.documents import Domain, document_of
from zslx.text.loader import Loader, heldout


def test_documents_come_back_word_for_word_each_ended_by_token_0(text: Path) -> None:
    corpus = prepare(text)
    assert corpus.domains == ("a", "b") and corpus.vocab_size == 300
    for d, domain in enumerate(corpus.domains):
        written = sorted(file.read_text() for file in (text / domain).iterdir())
        read = []
        for stream in (corpus.train[d], corpus.heldout[d]):
            assert stream.dtype == np.uint16 and stream[-1] == 0
            *parts, last = np.split(np.asarray(stream), np.flatnonzero(stream == 0) + 1)
            assert not len(last)
            read += [corpus.tokenizer.decode(part[:-1].tolist()) for part in parts]
        assert sorted(read) == written
    everything = np.concatenate([np.asarray(stream) for stream in corpus.train])
    assert (corpus.token_counts == np.bincount(everything, minlength=300)).all()
    assert Loader(corpus, seed=0, batch_size=4, seq_len=16).batch(1).tokens.shape == (4, 16)
    assert heldout(corpus, sequences=4, seq_len=16).tokens.shape == (4, 16)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    documents = tuple(document_of(str(i), prose(i)) for i in range(5))
    with tokenizer.parallelism():
        trained = tokenizer.trained([Domain(name="d", documents=documents)], 400)
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    file.write_text(trained.to_str(), encoding="utf-8")
    return tokenizer.opened(file)


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_decodes_to_itself(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text).ids
    assert bpe.decode(ids) == text and 0 not in ids


def test_the_end_marks_characters_inside_a_text_are_text(bpe: Tokenizer) -> None:
    document = document_of("x", f"a {tokenizer.END_OF_TEXT} b")
    ((size, ids),) = tokenizer.encoded(bpe, [document])
    assert size == document.size and ids.tolist().count(0) == 1 and ids[-1] == 0
    assert bpe.decode(ids[:-1].tolist(), skip_special_tokens=False) == document.text


@pytest.mark.parametrize(
    "text", ["x" * 3500, " " * 2500 + "end", "a\n" * 5 + "y" * 2001 + " z", "\n" * 1001, "", "x" * 1000]
)
def test_runs_without_a_break_are_cut(text: str) -> None:
    """To the BPE they would be one word, and its training takes the square of a word's length."""
    parts = list(tokenizer.pieces([text]))
    assert "".join(parts) == text
    assert all(len(run) <= tokenizer.RUN for part in parts for run in re.findall(r"\S+|\s+", part))
    assert len(parts) == 1 + sum((len(run) - 1) // tokenizer.RUN for run in re.findall(r"\S+|\s+", text))


def test_long_documents_are_cut_at_line_ends_and_lose_nothing(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PIECE", 50)
    text = prose(3) + "x" * 120 + "\nend"
    parts = list(tokenizer.pieces([text]))
    assert "".join(parts) == text and max(map(len, parts)) <= 50
    ends = [part.endswith("\n") for part in parts[:-1]]
    assert any(ends) and not all(ends)  # a cut inside a line only where the line is longer than a piece
    assert all(end or "\n" not in part for end, part in zip(ends, parts[:-1], strict=True))
    ids = np.concatenate([t for _, t in tokenizer.encoded(bpe, [document_of("x", text), document_of("y", "second")])])
    first, second, rest = np.split(ids, np.flatnonzero(ids == 0) + 1)
    assert bpe.decode(first[:-1].tolist()) == text and bpe.decode(second[:-1].tolist()) == "second" and not len(rest)


def test_the_tokenizer_never_sees_held_out_text(text: Path) -> None:
    secret = "zyzzyva " * 300
    (text / "a" / "secret.txt").write_text(secret)
    before = prepare(text)
    in_heldout = "zyzzyva" in before.tokenizer.decode(np.asarray(before.heldout[0]).tolist())
    in_vocabulary = any("zyzz" in entry for entry in before.tokenizer.get_vocab())
    assert in_heldout != in_vocabulary


def test_little_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    for i in range(2):
        file = tmp_path / "text" / f"{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("abc"[i:])
    corpus = prepare(tmp_path / "text", vocab_size=5000)
    assert tokenizer.SMALLEST_VOCABULARY <= corpus.vocab_size < 262
    assert corpus.vocab_size == len(corpus.token_counts) == corpus.tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match=r"domain 'text' has . training tokens, fewer than"):
        Loader(corpus, seed=0, batch_size=1, seq_len=64)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab \n\r\u2028é𝒳"), max_size=300), size=st.integers(1, 40))
def test_a_file_read_in_blocks_is_the_same_document(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("blocks") / "file.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK", size)
        found = documents.file_document("x", file)
        if not text.strip():
            assert found is None
            return
        assert found is not None
        whole = document_of("x", text)
        assert (found.digest, found.size, found.text) == (whole.digest, whole.size, text)
        assert heldout_split.sketch(found.blocks()) == heldout_split.sketch([text])
        patch.setattr(tokenizer, "PIECE", 17)
        assert list(tokenizer.pieces(found.blocks())) == list(tokenizer.pieces([text]))


# --------------------------------------------------------------------------------------- the embedded text


@pytest.mark.medium
def test_the_embedded_corpus_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = token_cache.prepare(cache=tmp_path, progress=False)
    assert corpus.domains == ("python", "prose", "math", "cpp") and corpus.vocab_size == 2048
    assert 10e6 < sum(map(len, corpus.train)) + sum(map(len, corpus.heldout)) < 20e6
    assert min(map(len, corpus.heldout)) > 100_000

    def refuse(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(token_cache.builtin, "domains", refuse)
    assert token_cache.prepare(cache=tmp_path).hash == corpus.hash


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [2048, 4096])
def test_the_embedded_corpus_repeats_bit_for_bit(
    tmp_path: Path, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        corpus = token_cache.prepare(vocab_size=vocab_size, cache=tmp_path / threads, progress=False)
        manifests.append(json.loads((corpus.folder / "manifest.json").read_text()))
    assert manifests[0] == manifests[1] and manifests[0]["vocab_size"] == vocab_size
