"""Data sets: every format gives the same tokens, and no kill, full disk or broken file costs what was finished."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zslx
from zslx.commands import cli
from zslx.config.groups import DataConfig
from zslx.config.run_config import Config, override, parse_overrides
from zslx.runs.identity import ingredients
from zslx.testing.subject import BLIND, TINY
from zslx.text import data_set, data_set_tokens, heldout_split, token_cache, token_chunks, tokenizer
from zslx.text.corpus import Corpus
from zslx.text.data_set import Row
from zslx.text.loader import ForeignStreams, Loader

datasets = pytest.importorskip("datasets")
WORDS = [
    "the",
    "loss",
    "of",
    "a",
    "token",
    "is",
    "minus",
    "the",
    "log",
    "of",
    "its",
    "share",
    "and",
    "gradients",
    "oppose",
    "é",
    "∂",
]


def prose(seed: int, lines: int = 4) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(f"{draw.choice(WORDS)}{draw.randrange(99)}" for _ in range(8)) for _ in range(lines))


def made(count: int = 600) -> list[dict[str, object]]:
    """Rows of two domains, in a nested column, with documents of different lengths."""
    return [{"text": prose(i, 1 + i % 7), "n": i, "meta": {"source": "ab"[i % 3 == 0]}} for i in range(count)]


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


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few documents, so that there are some."""
    monkeypatch.setattr(token_chunks, "CHUNK", 25_000)
    monkeypatch.setattr(token_chunks, "BATCH", 6_000)
    monkeypatch.setattr(data_set, "ROWS", 20)


def prepared(path: str, cache: Path, **values: object) -> Corpus:
    given = {"vocab_size": 400, "domain_column": "meta.source"} | values
    return token_cache.corpus_of(DataConfig(path=path, **given), cache=cache)  # type: ignore[arg-type]


def texts(corpus: Corpus, stream: np.ndarray) -> list[str]:
    ends = np.flatnonzero(np.asarray(stream) == corpus.end_of_text)
    assert ends[-1] == len(stream) - 1
    return [corpus.tokenizer.decode(part[:-1].tolist()) for part in np.split(np.asarray(stream), ends + 1)[:-1]]


def files(corpus: Corpus) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in corpus.folder.iterdir()}


# --------------------------------------------------------------------------------------------------- formats


def test_every_format_gives_the_same_tokens_of_whole_documents(tmp_path: Path) -> None:
    found = [prepared(write(tmp_path / write.__name__), tmp_path / "cache") for write in FORMATS]
    first = found[0]
    assert len({corpus.folder for corpus in found}) == len(FORMATS)
    assert {corpus.hash for corpus in found} == {first.hash}
    assert first.domains == ("a", "b") and first.vocab_size == 400 and first.train[0].dtype == np.uint16
    for d, name in enumerate(first.domains):
        train, heldout = texts(first, first.train[d]), texts(first, first.heldout[d])
        own = [str(row["text"]) for row in ROWS if row["meta"]["source"] == name]  # type: ignore[index]
        kept = set(train)
        assert train == [text for text in own if text in kept] and heldout == [text for text in own if text not in kept]
        size = sum(len(text.encode()) for text in own)
        assert 0.09 < sum(len(text.encode()) for text in heldout) / size < 0.13
        assert first.about[d]["train"] == {
            "file": f"0{d}-{name}.train.bin",
            "tokens": len(first.train[d]),
            "bytes": sum(len(text.encode()) for text in train),
            "documents": len(train),
        }
    everything = np.concatenate([np.asarray(stream) for stream in first.train])
    assert (first.token_counts == np.bincount(everything, minlength=400)).all()


@pytest.mark.parametrize("write", FORMATS)
def test_a_read_goes_on_from_its_saved_state(write: Callable[[Path], str], tmp_path: Path) -> None:
    data = data_set.found(write(tmp_path / "set"))
    assert isinstance(data.builder.as_streaming_dataset(split="train"), datasets.IterableDataset)
    whole = list(data.rows("text", ""))
    assert [row.text for rows, _ in whole for row in rows] == [row["text"] for row in ROWS]
    for at in (0, 3, 12, len(whole) - 2):
        state = json.loads(json.dumps(whole[at][1]))
        rest = [rows for rows, _ in data.rows("text", "", state)]
        assert rest == [rows for rows, _ in whole[at + 1 :]]


def test_tokens_are_taken_in_order_up_to_max_tokens(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set")
    whole = prepared(path, tmp_path / "cache", domain_column="")
    some = prepared(path, tmp_path / "cache", domain_column="", max_tokens=9000)
    documents = {*texts(some, some.train[0]), *texts(some, some.heldout[0])}
    assert documents == {str(row["text"]) for row in ROWS[: len(documents)]}  # the same tokenizer sample: same tokens
    last = whole.tokenizer.encode(str(ROWS[len(documents) - 1]["text"])).ids
    total = sum(map(len, (*some.train, *some.heldout)))
    assert 9000 <= total < 9000 + len(last) + 1
    assert prepared(path, tmp_path / "cache", domain_column="", max_tokens=10**9).hash == whole.hash


def test_documents_without_text_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty, null, blank, binary, and other encodings; each costs itself alone."""
    strange = [b"", b" \n", b"caf\xe9 in latin-1", "日本".encode("utf-16"), b"a\0b", None]
    good = [str(row["text"]).encode() for row in ROWS[:60]]
    column = pa.array([x for pair in itertools.zip_longest(good, strange) for x in pair], pa.binary())
    (tmp_path / "set").mkdir()
    column = pa.Array.from_buffers(pa.string(), len(column), column.buffers(), column.null_count)
    pa.parquet.write_table(pa.table({"text": column}), tmp_path / "set" / "x.parquet")
    corpus = prepared(f"hf:{tmp_path / 'set'}", tmp_path / "cache", domain_column="")
    found = {*texts(corpus, corpus.train[0]), *texts(corpus, corpus.heldout[0])}
    assert found == {text.decode() for text in good}
    assert corpus.data_set["skipped"] == 60  # and those with which zip_longest fills up
    assert "60 documents of hf:" in capsys.readouterr().err
    broken = tmp_path / "lines.jsonl"
    broken.write_bytes(b"".join(b'{"text": "%s"}\n' % (t or b"x").replace(b"\n", b" ").replace(b"\0", b" ") for t in
                                [*good, b"caf\xe9"]))  # fmt: skip
    rows = [row.text for some, _ in data_set.found(f"hf:{broken}").rows("text", "") for row in some]
    assert len(rows) == 61 and rows[-1] is None and None not in rows[:-1]


@pytest.mark.medium
def test_a_document_of_ten_million_characters_is_one_document(tmp_path: Path) -> None:
    huge = " ".join(WORDS) * (10_000_000 // len(" ".join(WORDS)) + 1)
    assert len(huge) > 10_000_000
    file = tmp_path / "set.jsonl"
    with file.open("w") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in [*(r["text"] for r in ROWS[:40]), huge])
    corpus = prepared(f"hf:{file}", tmp_path / "cache", domain_column="")
    assert sum(huge in texts(corpus, stream) for stream in (corpus.train[0], corpus.heldout[0])) == 1


# ------------------------------------------------------------------------------------------------ going on


PREPARE = """
import json, sys
from zslx.config.groups import DataConfig
from zslx.text import data_set, token_cache, token_chunks
token_chunks.CHUNK, token_chunks.BATCH, data_set.ROWS = 25_000, 6_000, 20
{before}
token_cache.corpus_of(DataConfig(path=sys.argv[1], vocab_size=400, domain_column="meta.source"), cache=sys.argv[2])
"""
KILL = """
import itertools, os, signal
calls, whole = itertools.count(1), {where}
def killing(*a):
    if next(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*a)
{where} = killing
"""


@pytest.mark.medium
@pytest.mark.parametrize(
    "where, at",
    [
        ("token_chunks._written", 5),  # two chunks are done, the third is tokenised
        pytest.param("token_chunks._written", 6, marks=pytest.mark.slow),  # and half written
        ("token_chunks._put", 7),  # some chunks are moved to their files
        pytest.param("token_cache._write_manifest", 1, marks=pytest.mark.slow),
        ("token_cache._put_in_place", 1),
    ],
)
def test_a_killed_preparation_goes_on_to_the_same_bytes(where: str, at: int, tmp_path: Path) -> None:
    path = parquet(tmp_path / "set")
    whole = files(prepared(path, tmp_path / "undisturbed"))
    program = PREPARE.format(before=KILL.format(where=where, at=at))
    done = subprocess.run([sys.executable, "-c", program, path, str(tmp_path / "cache")], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    read: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        rows = data_set.DataSet.rows

        def counted(self: data_set.DataSet, *arguments: object) -> object:
            for some, state in rows(self, *arguments):  # type: ignore[arg-type]
                read.extend(some)
                yield some, state

        patch.setattr(data_set.DataSet, "rows", counted)
        assert files(prepared(path, tmp_path / "cache")) == whole
    assert len(read) < 0.8 * len(ROWS) if where == "token_chunks._written" else not read
    assert not list((tmp_path / "cache").glob("*.partial*"))


class Full:
    """A disk that is full after some writes."""

    def __init__(self, writes: int):
        self.writes, self.real = writes, token_chunks._written

    def __call__(self, *arguments: object) -> object:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*arguments)  # type: ignore[arg-type]


def interrupted(path: str, cache: Path, monkeypatch: pytest.MonkeyPatch, writes: int = 6) -> Path:
    """A preparation that meets a full disk at its fourth chunk; its work folder."""
    with monkeypatch.context() as patch:
        patch.setattr(token_chunks, "_written", Full(writes))
        with pytest.raises(ValueError, match=r"No space left on device .*what is done is kept"):
            prepared(path, cache)
    (work,) = cache.glob("*.partial")
    return work


def test_a_full_disk_is_one_line_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "set")
    whole = files(prepared(path, tmp_path / "undisturbed"))
    interrupted(path, tmp_path / "cache", monkeypatch)
    capsys.readouterr()
    assert cli.main(["data", "show"]) == 0
    assert files(prepared(path, tmp_path / "cache")) == whole
    assert "going on after" in capsys.readouterr().err


def torn(work: Path) -> None:
    log = work / token_chunks.LOG
    log.write_bytes(log.read_bytes()[:-7])


def strange_line(work: Path) -> None:
    with (work / token_chunks.LOG).open("a") as log:
        log.write("00000000 {}\nno line\n")


def altered(work: Path) -> None:
    file = work / "000001.tokens"
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(content)


def gone(work: Path) -> None:
    (work / "000000.documents").unlink()


@pytest.mark.parametrize("damage", [torn, strange_line, altered, gone])
def test_damaged_work_is_done_again_and_no_more(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json_lines(tmp_path / "set")
    whole = files(prepared(path, tmp_path / "undisturbed"))
    work = interrupted(path, tmp_path / "cache", monkeypatch)
    damage(work)
    assert files(prepared(path, tmp_path / "cache")) == whole


def test_a_broken_shard_is_named_before_and_while_it_is_read(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set")
    file = tmp_path / "set" / "1.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*/set/1\.parquet: ") as error:
        prepared(path, tmp_path / "cache")
    assert "\n" not in str(error.value)
    lines = tmp_path / "lines"
    json_lines(lines)
    with gzip.open(lines / "2.jsonl.gz", "at") as stream:
        stream.write('{"text": "half a\n')
    with pytest.raises(ValueError, match=r"cannot read .*/lines/2\.jsonl\.gz: "):
        prepared(f"hf:{lines}", tmp_path / "cache")
    file.write_bytes(content)
    assert prepared(path, tmp_path / "cache").hash


# -------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    "values, message",
    [
        ({"text_column": "body"}, r"text_column='body': there is no such column; there are text, n, meta"),
        ({"text_column": "n"}, r"data\.text_column='n' holds int64, no text"),
        ({"domain_column": "meta.kind"}, r"domain_column='meta\.kind': there is no such column; there are text, n"),
        ({"domain_column": "meta"}, r"data\.domain_column='meta' holds struct.*allowed are text and whole numbers"),
        ({"domain_column": "n"}, r"the domain '\d+': none of its documents can be held out"),
    ],
)  # fmt: skip
def test_wrong_columns_are_named_with_those_that_there_are(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(parquet(tmp_path / "set"), tmp_path / "cache", **values)


def test_too_many_domains_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "DOMAINS", 8)
    with pytest.raises(ValueError, match=r"data\.domain_column has more than 8 values, such as '0', '1', '2'"):
        prepared(parquet(tmp_path / "set"), tmp_path / "cache", domain_column="n")


@pytest.mark.parametrize(
    "path, message",
    [
        ("hf:{set}::test", r"there is no split 'test'; there are train"),
        ("hf:{set}:other", r"BuilderConfig 'other' not found"),
        ("hf:{set}@main", r"@main is a revision of the hub"),
        ("hf:{set}/*.txt", r"no files there"),
        ("hf:{set}:a:b:c", r"is written hf:PLACE\[@REVISION\]"),
        ("hf:/nowhere", r"no such file or folder"),
        ("hf:{pickle}", r"allowed are parquet, json, arrow, csv|No .*data files|Couldn't find any data file"),
        ("hf:owner/name", r"the hub does not answer for owner/name: "),
    ],
)
def test_what_cannot_be_read_is_one_line(path: str, message: str, tmp_path: Path) -> None:
    parquet(tmp_path / "set")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "x.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    path = path.format(set=tmp_path / "set", pickle=tmp_path / "pickle")
    with pytest.raises(ValueError, match=message) as error:
        data_set.found(path)
    assert "\n" not in str(error.value)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.domain_column='source' is for data sets: data\.path=hf:PLACE"):
        DataConfig(path="notes", domain_column="source")
    with pytest.raises(ValueError, match=r"data='pile': allowed are c4, fineweb, dolma; any other text is given as"):
        parse_overrides(Config(), ["data=pile"])
    with pytest.raises(ValueError, match=r"data\.vocab_size=0: must be a number from 300 to 65536"):
        DataConfig(vocab_size=0)
    config = parse_overrides(Config(), ["data=c4", "data.max_tokens=1e9", "data.seq_len=32"])
    assert (config.data.path, config.data.max_tokens, config.data.seq_len) == ("hf:allenai/c4:en", 10**9, 32)
    assert Config.from_dict(config.to_dict()) == config


# --------------------------------------------------------------------------------------------------- the hub


def test_a_name_of_the_hub_is_pinned_to_its_commit_and_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loading code, with the hub's answers in its place: the commit, and a folder for the name."""
    folder, commit = splits(tmp_path / "set").removeprefix("hf:"), "0123456789" * 4
    local = prepared(f"hf:{folder}", tmp_path / "cache")
    asked: list[tuple[object, ...]] = []
    load = datasets.load_dataset_builder

    def hub(place: str, **options: object) -> object:
        asked.append((place, options.pop("revision")))
        return load(folder, **options)

    class Info:
        sha = commit

    monkeypatch.setattr(datasets, "load_dataset_builder", hub)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, revision: Info)
    corpus = prepared("hf:owner/name", tmp_path / "cache")
    assert asked == [("owner/name", commit)]
    assert corpus.data_set["name"] == "owner/name" and corpus.data_set["revision"] == commit
    assert corpus.data_set["split"] == "train" and "files" not in corpus.data_set
    assert prepared("hf:owner/name", tmp_path / "cache").hash == corpus.hash and len(asked) == 1
    assert prepared(f"hf:owner/name@{commit}", tmp_path / "cache").folder == corpus.folder
    assert corpus.hash == local.hash and corpus.folder != local.folder


# ------------------------------------------------------------------------------------------------ tokenizers


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
        (tmp_path / "text" / f"{i}.txt").write_text(prose(i, 30))
    data = DataConfig(path=str(tmp_path / "text"), tokenizer=str(bpe), vocab_size=0)
    corpus = token_cache.corpus_of(data, cache=tmp_path / "cache")
    assert corpus.end_of_text == 350 and corpus.vocab_size == 351
    assert {*texts(corpus, corpus.train[0]), *texts(corpus, corpus.heldout[0])} == {prose(i, 30) for i in range(4)}
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
    text = prose(1) + " </s>"
    assert end == theirs.eos_token_id == 350 and tokenizer.entries(own) == len(theirs)
    assert own.encode(prose(1), add_special_tokens=False).ids == theirs.encode(prose(1), add_special_tokens=False)
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


@pytest.mark.usefixtures("cache")
def test_the_data_command_prepares_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = parquet(tmp_path / "set")
    arguments = ["data.vocab_size=400", "data.domain_column=meta.source"]
    assert cli.main(["data", "prepare", path, *arguments]) == 0
    out = capsys.readouterr().out
    assert "400 entries, uint16; token 0 ends a document" in out and "kind parquet" in out and " 400 " in out
    assert cli.main(["data", "show"]) == 0
    assert out.strip() in capsys.readouterr().out
    assert cli.main(["data", "prepare", path, "optim.lr=1"]) == 2
    assert "'optim.lr=1': allowed are settings of the text" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ what is held out


def test_a_rank_is_of_the_text_alone_and_copies_share_it() -> None:
    ranks = np.array([heldout_split.rank(prose(i).encode()) for i in range(2000)])
    assert ranks.min() >= 0 and ranks.max() < heldout_split.RANKS
    share = (ranks < heldout_split.RANKS // 4).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(ranks))
    for i in range(20):
        text = prose(i)
        assert heldout_split.rank(f"\n  {text}  \n".encode()) == ranks[i]
    near = [heldout_split.rank("\n".join([*prose(i).split("\n")[:3], prose(i + 5000, 1)]).encode()) for i in range(500)]
    assert 0.5 < (near == ranks[:500]).mean() < 0.7  # 3 of 5 lines in common


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.tuples(st.integers(0, heldout_split.RANKS - 1), st.integers(1, 10**7)), min_size=1))
def test_a_cutoff_keeps_both_sides_and_the_share(documents: list[tuple[int, int]]) -> None:
    sizes = np.zeros(heldout_split.RANKS, dtype=np.int64)
    for rank, size in documents:
        sizes[rank] += size
    low = sizes[: heldout_split.TRAINED]
    if not low.any() or np.count_nonzero(sizes) == 1:
        with pytest.raises(ValueError, match="too few"):
            heldout_split.cutoff(sizes)
        return
    cut = heldout_split.cutoff(sizes)
    held, wanted = int(sizes[:cut].sum()), heldout_split.target(int(sizes.sum()))
    assert cut <= heldout_split.TRAINED and 0 < held < sizes.sum()
    assert held <= 1.25 * wanted or np.count_nonzero(sizes[:cut]) == 1  # more than the share only where one is more


def test_the_disk_is_named_before_anything_is_tokenised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**9))
    say = data_set_tokens.announced
    work = tmp_path / "text-0.partial"
    line = say("hf:x/y", work, 3e9, 0, 2048, 2, 0)
    assert line == f"hf:x/y: about 1 billion tokens, 2 GB in {tmp_path}, where 5 GB are free"
    assert "2 million tokens, 8 MB" in say("hf:x/y", work, 3e9, 2 * 10**6, 10**5, 4, 0)
    assert "TOO LITTLE: set data.max_tokens" in say("hf:x/y", work, 3e10, 0, 2048, 2, 0)
    assert "TOO LITTLE" not in say("hf:x/y", work, 3e10, 0, 2048, 2, 8 * 10**9)
    assert "its size is not known; a token takes 4 bytes" in say("hf:x/y", work, None, 0, 10**5, 4, 0)


def test_rows_of_a_batch_keep_their_state_and_order() -> None:
    tables = [([Row("x" * 4000, "d")], {"at": i}) for i in range(5)]
    batches = list(token_chunks._batches(iter(tables)))
    assert [(len(rows), state["at"]) for rows, state in batches] == [(2, 1), (2, 3), (1, 4)]
