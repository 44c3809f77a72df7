"""Data sets: every format gives the same tokens, and what cannot be read is refused in one line."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.text.made_data_sets import FORMATS, ROWS, parquet, prepared, splits, texts
from tests.text.made_text import WORDS
from zslx.commands import cli
from zslx.config.groups import DataConfig
from zslx.config.run_config import Config, parse_overrides
from zslx.text import data_set, data_set_tokens, token_chunks
from zslx.text.data_set import Row

pytestmark = pytest.mark.usefixtures("small")
datasets = pytest.importorskip("datasets")


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
    words = " ".join([*WORDS, "é", "∂"])
    huge = words * (10_000_000 // len(words) + 1)
    assert len(huge) > 10_000_000
    file = tmp_path / "set.jsonl"
    with file.open("w") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in [*(r["text"] for r in ROWS[:40]), huge])
    corpus = prepared(f"hf:{file}", tmp_path / "cache", domain_column="")
    assert sum(huge in texts(corpus, stream) for stream in (corpus.train[0], corpus.heldout[0])) == 1


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
