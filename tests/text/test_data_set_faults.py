"""No kill, full disk or broken file costs a data set what was finished of it."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.text.made_data_sets import ROWS, files, json_lines, parquet, prepared
from zslx.commands import cli
from zslx.text import data_set, token_chunks

pytestmark = pytest.mark.usefixtures("small")


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
