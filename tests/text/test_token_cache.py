"""The token cache: prepared once however many ask, never half, never stale, never altered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.text.made_text import folders, prepare, prose
from zslx.text import builtin, documents, token_cache, tokenizer
from zslx.text import corpus as corpus_module


def test_the_same_text_has_the_same_hash_anywhere_and_any_change_another(text: Path, tmp_path: Path) -> None:
    first = prepare(text)
    again = prepare(text, cache=tmp_path / "elsewhere")
    assert again.hash == first.hash and again.folder != first.folder
    for one, other in zip(first.train + first.heldout, again.train + again.heldout, strict=True):
        assert (one == other).all()
    assert prepare(text, vocab_size=290).hash != first.hash
    file = text / "a" / "0.txt"
    old, stat = file.read_text(), file.stat()
    file.write_text("X" + old[1:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same modification time
    changed = prepare(text)
    assert changed.hash != first.hash
    file.write_text(old)
    assert prepare(text).hash == first.hash


def test_what_the_recipe_makes_changes_only_with_its_number(text: Path) -> None:
    """A cache is found by RECIPE, not by the code that made it: other tokens from the same sources need another."""
    corpus = prepare(text)
    made = [np.asarray(stream).tolist() for stream in (*corpus.train, *corpus.heldout)]
    source = 'def f():\n    """' + prose(0, 40) + '"""\n'
    rules = [[s.domain, s.package, s.patterns, s.cap, s.extract.__name__] for s in builtin.SOURCES]
    skipped = [sorted(builtin._SKIPPED_FOLDERS), builtin._SKIPPED_FILES.pattern, builtin._GENERATED.pattern]
    licence = builtin._without_known_licences("Copyright 1.\n\nCopyright 2.\n\ntext", set())
    digest = corpus_module.sha256([made, list(builtin._docstrings(source)), rules, skipped, licence])
    assert (token_cache.RECIPE, digest[:16]) == (1, "df60d4bc922254b7")


def test_one_thread_gives_the_same_tokens(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    threads = prepare(text)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert prepare(text, cache=tmp_path / "one").hash == threads.hash


def test_files_that_did_not_change_are_not_read_again(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(text)
    for file in text.rglob("*.txt"):
        assert file.stat().st_ctime > time.time() - 2  # so young that no note was taken
    assert not list((text.parent / "cache").glob("path-*"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)
    prepare(text)  # takes the note
    (note,) = (text.parent / "cache").glob("path-*")

    def refuse(*_: object) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr("zslx.text.documents.text_blocks", refuse)
    assert prepare(text).hash == first.hash
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: now() + 10)
    for damaged in (b"", b"\xff\x00", b"../..", b"text-0000000000000000"):
        note.write_bytes(damaged)
        assert prepare(text).hash == first.hash
        assert note.read_text() == first.folder.name


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZSLX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert token_cache.cache_folder() == tmp_path / "home/.cache/zslx"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert token_cache.cache_folder() == tmp_path / "xdg/zslx"
    monkeypatch.setenv("ZSLX_CACHE", str(tmp_path / "own"))
    assert token_cache.cache_folder() == tmp_path / "own"
    assert token_cache.cache_folder(tmp_path / "given") == tmp_path / "given"


# ------------------------------------------------------------------------------------------------- refusal


def test_errors_name_what_is_wrong(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="vocab_size=256: must be at least 257"):
        prepare(text, vocab_size=256)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"file/cache cannot be used: Not a directory .*ZSLX_CACHE"):
        prepare(text, cache=blocked / "cache")
    (text / "c").mkdir()
    (text / "c" / "only.txt").write_text(prose(1))
    with pytest.raises(ValueError, match=r"domain 'c': held-out text is split off by file.*only\.txt"):
        prepare(text)
    (text / "c" / "binary").write_bytes(b"\0")
    (text / "c" / "second.txt").write_text(prose(2))
    prepare(text)
    assert "1 files of" in capsys.readouterr().err
    assert folders(text) == [prepare(text).folder.name]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["00-a.train.bin", "01-b.heldout.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, alter, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_cache_is_made_again(
    text: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(text)
    kept = np.array(first.train[0])
    damage(first.folder / name)
    with pytest.raises((corpus_module.DamagedCache, FileNotFoundError)):
        corpus_module.load(first.folder)
    again = prepare(text)
    assert again.hash == first.hash and again.folder == first.folder
    assert (again.train[0] == kept).all()
    assert folders(text) == [first.folder.name]
    err = capsys.readouterr().err
    assert "preparing again" in err or (name, damage) == ("manifest.json", Path.unlink), err


def test_a_manifest_of_another_shape_is_damage_not_a_traceback(text: Path) -> None:
    file = prepare(text).folder / "manifest.json"
    for content in (b"[]", b"{}", b"null", b'"x"', b'{"check": 1}', b"\xff", b"{"):
        file.write_bytes(content)
        with pytest.raises(corpus_module.DamagedCache, match=r"manifest\.json"):
            corpus_module.load(file.parent)


def test_large_files_are_checked_at_both_ends_and_in_between(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(200 * 2**20)  # sparse
    before = corpus_module.fingerprint(file)
    for place in (0, 200 * 2**20 - 1):
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        assert corpus_module.fingerprint(file) != before
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"\0")
    with file.open("ab") as stream:
        stream.write(b"\0")
    assert corpus_module.fingerprint(file) != before


# ------------------------------------------------------------------------------------- processes and kills

PREPARE = """
import sys
from zslx.text import token_cache
corpus = token_cache.prepare(sys.argv[1], 300, cache=sys.argv[2])
print(corpus.hash)
"""


def start(text: Path, program: str = PREPARE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(text), str(text.parent / "cache")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_many_processes_prepare_it_once(text: Path) -> None:
    slow = PREPARE.replace("corpus =", "import time; b = token_cache._write_tokens\n"
        "token_cache._write_tokens = lambda *a: (print('building'), time.sleep(3), b(*a))[2]\ncorpus =")  # fmt: skip
    results = [process.communicate() for process in [start(text, slow) for _ in range(4)]]
    assert sum("building" in out for out, _ in results) == 1
    assert sum("waiting for another process that prepares" in err for _, err in results) == 3
    assert len({out.split()[-1] for out, _ in results}) == 1
    assert len(folders(text)) == 1


@pytest.mark.parametrize("moment", ["_write_tokens", "_sync"])
def test_a_killed_preparation_leaves_nothing_that_is_taken_for_finished(text: Path, moment: str) -> None:
    """Killed while it writes, or when all is written and it syncs, just before the rename."""
    program = PREPARE.replace(
        "corpus =",
        "import os, signal\n"
        f"whole = token_cache.{moment}\n"
        f"token_cache.{moment} = lambda *a: (whole(*a), os.kill(os.getpid(), signal.SIGKILL))\n"
        "corpus =",
    )
    process = start(text, program)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = folders(text)
    assert ".tmp-" in left
    corpus = prepare(text)
    assert folders(text) == [corpus.folder.name]


def test_interruption_and_a_full_disk_leave_nothing_and_a_clear_message(text: Path) -> None:
    """A file size limit is a full disk that a test can have: the write itself fails."""
    limited = PREPARE.replace(
        "import sys", "import sys, resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))"
    )
    process = start(text, limited)
    err = process.communicate()[1]
    assert process.returncode == 1
    assert "ValueError: the text cache" in err.splitlines()[-1] and "File too large" in err.splitlines()[-1]
    interrupted = PREPARE.replace(
        "corpus =",
        "import os, signal\ntoken_cache._sync = lambda *a: os.kill(os.getpid(), signal.SIGINT)\ncorpus =",
    )
    process = start(text, interrupted)
    assert "KeyboardInterrupt" in process.communicate()[1]
    assert folders(text) == []
    prepare(text)


def test_a_read_only_cache_serves_who_only_reads(text: Path) -> None:
    first = prepare(text)
    lock = first.folder.with_suffix(".lock")
    lock.unlink()
    assert prepare(text).hash == first.hash
    assert not lock.exists()  # nothing had to be locked


def test_a_fork_after_a_preparation_is_silent(text: Path) -> None:
    program = PREPARE.replace(
        "print(corpus.hash)",
        "import os\n"
        "bpe = corpus.tokenizer\n"
        "if (child := os.fork()) == 0:\n"
        "    bpe.encode_batch(['the loss'] * 100)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", program, str(text), str(text.parent / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "0\n" and done.stderr == ""


# -------------------------------------------------------------------------------------------- large files


@pytest.mark.medium
def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    """What Python holds while a file of 4 MB is prepared, and one of 16 MB, in parts of 50 kB. (The tokenizer's own
    memory is not Python's; it gets some parts at a time, which is counted below.)"""
    small, large = held(tmp_path / "small", 4), held(tmp_path / "large", 16)
    assert small[0] < 5e6 and large[0] < 5e6
    assert small[1] <= large[1] <= 6 * 50_000


def held(root: Path, megabytes: int) -> tuple[int, int]:
    """(peak bytes in Python, largest number of characters encoded at once)."""
    root.mkdir()
    (root / "first.txt").write_text(prose(0, 3000) + "\n")
    with (root / "second.txt").open("w") as file:
        for i in range(40):
            line = prose(i, 400).replace("\n", " ")
            file.write(f"{i} {line}\n" * (megabytes * 25_000 // len(line)))
    size = 0

    class Counted:
        def __init__(self, bpe: Tokenizer):
            self.bpe = bpe

        def __getattr__(self, name: str) -> object:
            return getattr(self.bpe, name)

        def encode_batch_fast(self, texts: list[str], **options: bool) -> object:
            nonlocal size
            size = max(size, sum(map(len, texts)))
            return self.bpe.encode_batch_fast(texts, **options)

    opened = tokenizer.opened
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "PIECE", 50_000)
        patch.setattr(documents, "BLOCK", 50_000)
        patch.setattr(tokenizer, "TRAINING_BYTES", 200_000)
        patch.setattr(tokenizer, "opened", lambda file: Counted(opened(file)))
        tracemalloc.start()
        token_cache.prepare(str(root), 300, cache=root.parent / "cache", progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, size
