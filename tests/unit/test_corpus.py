"""Documents and domains: what is read, what is left out, and a held-out split that no file and no twin straddles."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.text import builtin, documents, heldout_split
from zslx.text.documents import Document, document_of


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def names(domains: tuple[documents.Domain, ...]) -> dict[str, list[str]]:
    return {d.name: [x.name for x in d.documents] for d in domains}


# ------------------------------------------------------------------------------------------ text of one's own


def test_a_sub_folder_is_a_domain_and_loose_files_are_one_named_after_the_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "notes", {"b/x.txt": "x", "b/deep/y.md": "y", "a/z.txt": "z", "loose.txt": "l"})
    domains, skipped = documents.folder(str(root))
    assert names(domains) == {"a": ["a/z.txt"], "b": ["b/deep/y.md", "b/x.txt"], "notes": ["loose.txt"]}
    assert skipped == 0
    assert [d.text for d in domains[1].documents] == ["y", "x"]


def test_a_glob_counts_domains_from_its_fixed_part(tmp_path: Path) -> None:
    root = write(tmp_path / "notes", {"b/x.txt": "x", "b/y.md": "y", "a/deep/z.txt": "z", "loose.txt": "l"})
    assert names(documents.folder(f"{root}/**/*.txt")[0]) == {
        "a": ["a/deep/z.txt"],
        "b": ["b/x.txt"],
        "notes": ["loose.txt"],
    }
    assert names(documents.folder(f"{root}/b/*")[0]) == {"b": ["x.txt", "y.md"]}
    assert names(documents.folder(f"{root}/loose.txt")[0]) == {"notes": ["loose.txt"]}


def test_relative_paths_and_a_glob_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "here", {"x.txt": "x", "a/y.txt": "y"}))
    assert (
        names(documents.folder(".")[0])
        == names(documents.folder("**/*.txt")[0])
        == {"a": ["a/y.txt"], "here": ["x.txt"]}
    )


def test_what_is_no_text_is_skipped_and_counted_and_twins_count_once(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a/1": "text",
        "b/2": "text",
        "a/binary": b"ab\0cd",
        "a/latin": "é".encode("latin-1"),
        "a/utf16": "text".encode("utf-16"),
        "a/empty": "",
        "a/blank": " \n",
        ".git/config": "hidden",
        "a/.hidden": "hidden",
        "a/bom": b"\xef\xbb\xbfwith a mark",
    }
    domains, skipped = documents.folder(str(write(tmp_path / "r", files)))
    assert names(domains) == {"a": ["a/1", "a/bom"]}
    assert domains[0].documents[1].text == "with a mark"
    assert skipped == 5


@pytest.mark.parametrize(
    "path, message",
    [
        ("missing", "no such file or folder"),
        ("*.nothing", "no files there"),
        ("empty", "no files there"),
        ("binary", "none of its 1 files has UTF-8 text"),
    ],
)
def test_errors_name_the_path(tmp_path: Path, path: str, message: str) -> None:
    write(tmp_path, {"binary/x": b"\0"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message) as error:
        documents.folder(str(tmp_path / path))
    assert str(tmp_path / path) in str(error.value)


def test_a_home_of_nobody_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"^data\.path='~nosuchuser/notes': there is no user 'nosuchuser'$"):
        documents.folder("~nosuchuser/notes")


@pytest.mark.parametrize("name", [b"caf\xe9/x.txt", b"plain/caf\xe9.txt"])
def test_a_name_that_is_not_utf_8_is_an_error_of_one_line(tmp_path: Path, name: bytes) -> None:
    file = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(file))
    with open(file, "w") as stream:
        stream.write("text")
    with pytest.raises(ValueError, match=r"^data\.path=.*: the name '.*caf.udce9.* is not UTF-8; rename it$") as error:
        documents.folder(str(tmp_path))
    assert not isinstance(error.value, UnicodeError)


def test_a_file_that_changes_while_it_is_prepared_is_noticed(tmp_path: Path) -> None:
    domains, _ = documents.folder(str(write(tmp_path / "r", {"a.txt": "before"})))
    write(tmp_path / "r", {"a.txt": "after!"})
    with pytest.raises(ValueError, match=r"a\.txt changed while it was being prepared"):
        _ = domains[0].documents[0].text


# ---------------------------------------------------------------------------------------------------- split


def lines(seed: int, n: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [f"line {draw.random()} of document {seed}" for _ in range(n)]


def made(*sizes: int, first: int = 0) -> list[Document]:
    texts = ["\n".join(lines(first + i))[: max(size, 1)] for i, size in enumerate(sizes)]
    return [document_of(f"f{first + i}.txt", text) for i, text in enumerate(texts)]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(30, 2500), min_size=2, max_size=60))
def test_split_keeps_files_whole_in_order_and_both_sides_filled(sizes: list[int]) -> None:
    given_ = made(*sizes)
    train, held = heldout_split.split(given_)
    assert train and held
    assert sorted([*train, *held], key=lambda d: d.name) == sorted(given_, key=lambda d: d.name)
    assert [d for d in given_ if d in train] == train and [d for d in given_ if d in held] == held
    total, most = sum(d.size for d in given_), max(d.size for d in given_)
    assert sum(d.size for d in held) <= max(1.25 * heldout_split.MOST * total, most)
    # The choice does not depend on the order in which the files come.
    assert set(d.name for d in heldout_split.split(given_[::-1])[1]) == set(d.name for d in held)


def test_split_of_many_files_reaches_its_share() -> None:
    given_ = made(*[2400] * 1000)
    share = sum(d.size for d in heldout_split.split(given_)[1]) / sum(d.size for d in given_)
    assert heldout_split.MOST <= share < 1.05 * heldout_split.MOST  # 2.4 MB: LEAST would be a fifth of it


def test_near_duplicates_stay_together() -> None:
    base = lines(0)
    variants = ["\n".join([*base[:40], *lines(i, 20)]) for i in range(1, 4)]  # each shares two thirds with the others
    twins = [document_of(f"twin{i}", text) for i, text in enumerate(variants)]
    others = made(*[2000] * 5, first=100)
    groups = heldout_split.near_duplicates([*twins, *others])
    assert groups[0] == [0, 1, 2] and sorted(map(len, groups)) == [1, 1, 1, 1, 1, 3]
    for shift in range(30):  # whichever group the names' hashes choose
        renamed = [document_of(f"{shift}-{d.name}", d.text) for d in [*twins, *others]]
        held = [d.name for d in heldout_split.split(renamed)[1]]
        assert sum("twin" in name for name in held) in (0, 3)


def test_boilerplate_makes_no_duplicates() -> None:
    shared = lines(7, 10)
    given_ = [document_of(f"f{i}", "\n".join([*shared, *lines(i + 50, 10)])) for i in range(heldout_split.COMMON + 1)]
    assert len(heldout_split.near_duplicates(given_)) == heldout_split.COMMON + 1


def test_a_domain_that_cannot_be_split_by_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two files.*has 1: f0\.txt"):
        heldout_split.split(made(100))
    twin = made(1500)[0]
    with pytest.raises(ValueError, match="at least two files that differ"):
        heldout_split.split([twin, document_of("copy", twin.text + "\nend")])


# --------------------------------------------------------------------------------------------- embedded text


MODULE = '''
"""The module's docstring, long enough to be taken for prose and not for a label: eighty characters."""
def f():
    """Too short."""
    if True:
        class C:
            """A docstring inside an if inside a function, also of more than eighty characters, so that it counts."""
add_newdoc("numpy", "sin", """
    Sine of an angle in radians, documented by a call as numpy does for functions that are written in C.
    """)
abs = _add_docstr(torch.abs, r"""
    Absolute value {x}, with a format call around the string, and long enough to count as prose.
    """.format(x=1))
x = """A string that documents nothing and is therefore not taken, however long it may be, as here, really."""
'''


def test_docstrings_are_found_wherever_they_stand() -> None:
    ((_, text),) = builtin._docstrings(MODULE)
    starts = [part.split(",")[0] for part in text.split("\n\n")]
    assert starts == [
        "The module's docstring",
        "A docstring inside an if inside a function",
        "Sine of an angle in radians",
        "Absolute value {x}",
    ]


def test_topics_are_documents_of_their_own() -> None:
    assert dict(builtin._topics('# made by Sphinx\ntopics = {"if": "The if statement", "for": "Loops"}')) == {
        "#if": "The if statement",
        "#for": "Loops",
    }


def test_licences_stay_once_whatever_the_year_and_comment_mark() -> None:
    seen: set[str] = set()
    first = builtin._without_known_licences("# Copyright 2020 someone.\n# All rights.\n\nimport os\n", seen)
    again = builtin._without_known_licences("// Copyright 2021 someone.\n// All rights.\n\nint x;\n", seen)
    assert "Copyright" in first and again == "int x;\n"
    assert builtin._without_known_licences("int y;\n\nint y;\n", seen) == "int y;\n\nint y;\n"


def test_generated_code_and_tables_are_left_out() -> None:
    assert list(builtin._code("// @generated by torchgen\nint x;")) == []
    assert list(builtin._code("int x;")) == [("", "int x;")]
    assert builtin._is_table("0x1F, 0x2E, 0x3D, 17.5, 8839, 1234\n" * 50)
    assert not builtin._is_table("for i in range(10):\n    total += weights[i] * values[i]\n")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = builtin._Source(domain="d", package="no_such_package_here", patterns=("*.py",))
    monkeypatch.setattr(builtin, "SOURCES", (source,))
    with pytest.raises(ValueError, match=r"needs the package no_such_package_here, which is not.*data\.path="):
        builtin.versions()
    with pytest.raises(ValueError, match="no_such_package_here"):
        builtin.domains()


@pytest.mark.medium
def test_the_embedded_corpus_is_four_domains_of_real_text_read_without_imports() -> None:
    program = """
import sys
from zslx.text import builtin
from zslx.text import heldout_split
before = set(sys.modules)
domains = builtin.domains()
loaded = {name.split('.')[0] for name in set(sys.modules) - before}
assert not loaded & {'scipy', 'sympy', 'torch', 'numpy'}, loaded
assert [d.name for d in domains] == ['python', 'prose', 'math', 'cpp']
names = [x.name for d in domains for x in d.documents]
digests = [x.digest for d in domains for x in d.documents]
assert len(set(names)) == len(names) and len(set(digests)) == len(digests)
for d in domains:
    assert list(d.documents) == sorted(d.documents, key=lambda x: x.name)
    size = sum(x.size for x in d.documents)
    assert 5e6 < size < 22e6, (d.name, size)
    train, held = heldout_split.split(d.documents)
    assert 0.9 * heldout_split.LEAST < sum(x.size for x in held) < 0.08 * size and len(held) >= 10, d.name
    # What a held-out file shares with training files is boilerplate: below a quarter of its longer lines.
    known = {line.strip() for x in train for line in x.text.splitlines()}
    lines = [line.strip() for x in held for line in x.text.splitlines() if len(line.strip()) >= 20]
    assert sum(line in known for line in lines) < 0.25 * len(lines), d.name
"""
    subprocess.run([sys.executable, "-c", program], check=True)
