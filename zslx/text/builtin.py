"""The embedded corpus: real text of four kinds that needs no download.

Every machine that can run zslx has its parts, in the versions of the lock:

    python  the standard library's code
    prose   documentation: docstrings of numpy, scipy and torch, and pydoc's language reference
    math    sympy's code
    cpp     torch's C++ headers

Nothing is imported: packages are found by their import spec and read as text, docstrings with `ast`. Left out are
tests, generated files, tables, parts that only some builds have, and licence paragraphs after their first
appearance. Each source is capped, its files taken in the order of their paths' hash, so that no package drowns
the rest.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zslx.text.documents import Document, Domain, Progress, document_of, read_text, silent
from zslx.versions import version


def _code(text: str) -> Iterator[tuple[str, str]]:
    if not _GENERATED.search(text[:1500]):
        yield "", text


def _docstrings(text: str) -> Iterator[tuple[str, str]]:
    """All docstrings of a Python file as one document; those handed to `add_newdoc`, `add_docstr` too."""
    tree = ast.parse(text)
    found = [ast.get_docstring(tree) or ""]
    for statement in _statements(tree.body):
        call = getattr(statement, "value", None)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(statement) or "")
        elif isinstance(call, ast.Call) and "doc" in getattr(call.func, "attr", getattr(call.func, "id", "")):
            strings = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [inspect.cleandoc(string) for string in strings]
    # Below about a line, a docstring is a label.
    yield "", "\n\n".join(dict.fromkeys(string for string in found if len(string) >= 80))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of all bodies in it: half the time of `ast.walk`, which goes into expressions."""
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "handlers", "finalbody"):
            yield from _statements(getattr(statement, inner, []))


def _topics(text: str) -> Iterator[tuple[str, str]]:
    """The chapters of Python's language reference, which `pydoc_data/topics.py` keeps as one dict literal."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):
            yield from ((f"#{name}", str(body)) for name, body in ast.literal_eval(node).items())


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Files of one package (`stdlib` is Python's own), how to read them, and how much at most."""

    domain: str
    package: str
    patterns: tuple[str, ...]  # below the package's folder
    extract: Callable[[str], Iterator[tuple[str, str]]] = _code
    cap: int = 9_000_000  # bytes

    @property
    def cost(self) -> int:
        """Time to read a byte, roughly: parsing Python takes most of it."""
        return 1 if self.extract is _code else 3


_TORCH_DOCS = ("_torch_docs.py", "_tensor_docs.py", "nn/**/*.py", "optim/*.py", "distributions/*.py")
_TORCH_HEADERS = (
    "ATen/**/*.h",
    "c10/**/*.h",
    "caffe2/**/*.h",
    "torch/csrc/**/*.h",
    "torch/headeronly/**/*.h",
)

SOURCES = (
    _Source(domain="python", package="stdlib", patterns=("**/*.py",)),
    _Source(domain="prose", package="stdlib", patterns=("pydoc_data/topics.py",), extract=_topics),
    _Source(domain="prose", package="numpy", patterns=("**/*.py",), extract=_docstrings),
    _Source(domain="prose", package="scipy", patterns=("**/*.py",), extract=_docstrings),
    _Source(domain="prose", package="torch", patterns=_TORCH_DOCS, extract=_docstrings),
    _Source(domain="math", package="sympy", patterns=("**/*.py",)),
    _Source(domain="cpp", package="torch", patterns=tuple(f"include/{p}" for p in _TORCH_HEADERS)),
)

# Folders of tests, of generated code, of other packages, and those that only some builds or machines have.
_SKIPPED_FOLDERS = frozenset(
    """test tests test-examples idle_test idlelib lib2to3 benchmarks __pycache__ site-packages dist-packages
    encodings distutils tkinter turtledemo _antlr ops generated cuda cudnn hip miopen mps xpu sycl
    mkldnn""".split()  # noqa: SIM905
)
_SKIPPED_FILES = re.compile(
    r"test_|conftest|_sysconfig|sitecustomize|usercustomize"
    r"|VmapGenerated|RegistrationDeclarations|TensorBody|RedispatchFunctions|MethodOperators"  # generated, unmarked
)
_GENERATED = re.compile(r"@generated|auto(matically |-?)generated|generated (by|from)|do not edit", re.IGNORECASE)
_LICENCE = re.compile(r"copyright|licen[sc]e|warrant", re.IGNORECASE)
_HEAD = 6000  # characters in which licences are looked for


def versions() -> dict[str, str]:
    """What the embedded text is made of, package by package."""
    versions = {"python": platform.python_version()}
    for package in sorted({s.package for s in SOURCES} - {"stdlib"}):
        if (found := version(package)) is None:
            raise ValueError(
                f"the embedded text needs the package {package}, which is not installed; "
                "install it or give text of your own with data.path=FOLDER"
            )
        versions[package] = found
    return versions


def domains(progress: Progress = silent) -> tuple[Domain, ...]:
    """The embedded corpus, documents in the order of their names. `progress` gets the share that is done.

    ValueError where a package is missing or has none of the expected files (a Python without sources).
    """
    documents: dict[str, list[Document]] = {}
    seen: set[str] = set()  # digests of documents and of licence paragraphs
    files = [_files(source) for source in SOURCES]
    work = [
        min(sum(f.stat().st_size for _, f in found), s.cap) * s.cost for s, found in zip(SOURCES, files, strict=True)
    ]
    for i, source in enumerate(SOURCES):
        chosen, size = [], 0
        for j, (name, file) in enumerate(files[i]):
            progress((sum(work[:i]) + work[i] * j / len(files[i])) / sum(work))
            for document in _read(source, name, file, seen):
                chosen.append(document)
                size += document.size
            if size >= source.cap:
                break
        if not chosen:
            raise ValueError(
                f"the embedded text: no source files in {_root(source.package)} for the domain "
                f"{source.domain!r}; give text of your own with data.path=FOLDER"
            )
        documents.setdefault(source.domain, []).extend(chosen)
    return tuple(
        Domain(name=name, documents=tuple(sorted(chosen, key=lambda d: d.name))) for name, chosen in documents.items()
    )


def _root(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the embedded text needs the package {package}, which has no folder here")
    return Path(spec.submodule_search_locations[0])


def _files(source: _Source) -> list[tuple[str, Path]]:
    """(name, path) of a source's files in the order of their names' hash: a cap then takes from everywhere."""
    root = _root(source.package)
    files = {}
    for pattern in source.patterns:
        for file in root.glob(pattern):
            relative = file.relative_to(root)
            if _SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not _SKIPPED_FILES.match(file.name):
                files[f"{source.package}/{relative.as_posix()}"] = file
    return sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _read(source: _Source, name: str, file: Path, seen: set[str]) -> Iterator[Document]:
    text = read_text(file)
    if text is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            parts = list(source.extract(text))
    except SyntaxError:  # a template, or a file for another version of Python
        return
    for suffix, part in parts:
        document = document_of(name + suffix, _without_known_licences(part, seen))
        if document.size >= 200 and not _is_table(part) and document.digest not in seen:
            seen.add(document.digest)
            yield document


def _without_known_licences(text: str, seen: set[str]) -> str:
    """The text less the paragraphs near its start that speak of licence or copyright and were seen before."""
    head, kept = text[:_HEAD], []
    for paragraph in re.split(r"(?<=\n)(?=\s*\n)", head):
        if _LICENCE.search(paragraph):
            key = re.sub(r"[^a-z]+", "", paragraph.lower())  # years and comment marks do not make it another text
            if key in seen:
                continue
            seen.add(key)
        kept.append(paragraph)
    return "".join(kept).lstrip("\n") + text[_HEAD:]


def _is_table(text: str) -> bool:
    """Whether less than 60 % of the text is letters and white space: numbers, escapes, code points."""
    return sum(map(len, re.findall(r"[A-Za-z\s]+", text))) < 0.6 * len(text)
