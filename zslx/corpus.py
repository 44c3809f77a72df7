"""The text: documents of several domains, from this environment's own packages or from any folder.

The embedded corpus needs no download. Every machine that can run zslx has its parts, in versions that the lock pins:

    python  the standard library's code
    prose   documentation: docstrings of numpy, scipy and torch, and pydoc's language reference
    math    sympy's code
    cpp     torch's C++ headers

Nothing is imported: packages are found by their import spec and read as text, docstrings with `ast`. Left out are
tests, generated files, tables, parts that only some builds have, and licence paragraphs after their first
appearance. Each source is capped, files taken in the order of their paths' hash, so that no package drowns the rest.

Text of one's own: a folder, or a glob such as `notes/**/*.md`. Each sub folder is a domain; files that lie directly
in the folder form a domain named after it. Files that are not UTF-8 text are skipped and counted.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file's text. `name` is its path relative to its source; `digest` the sha256 of its UTF-8 bytes."""

    name: str
    digest: str
    size: int  # bytes of UTF-8
    file: Path | None = None  # a user's file, read again when needed: a large corpus need not fit in memory
    content: str | None = None

    @property
    def text(self) -> str:
        if self.content is not None:
            return self.content
        assert self.file is not None
        text = read_text(self.file)
        if text is None or hashlib.sha256(text.encode()).hexdigest() != self.digest:
            raise ValueError(f"data.path: {self.file} changed while it was being prepared; start again")
        return text


@dataclass(frozen=True, kw_only=True)
class Domain:
    name: str
    documents: tuple[Document, ...]


def read_text(file: Path) -> str | None:
    """The file as UTF-8 text, or None where it is binary, in another encoding, or empty."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"data.path: cannot read {file}: {error.strerror or error}") from error
    if b"\0" in content:
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _document(name: str, text: str, file: Path | None = None) -> Document:
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    return Document(name=name, digest=digest, size=len(content), file=file, content=None if file else text)


# ------------------------------------------------------------------------------------------ embedded text


def _code(text: str) -> Iterator[tuple[str, str]]:
    if not _GENERATED.search(text[:1500]):
        yield "", text


def _docstrings(text: str) -> Iterator[tuple[str, str]]:
    """All docstrings of a Python file as one document; those handed to `add_newdoc`, `add_docstr` too."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Call) and "doc" in getattr(node.func, "attr", getattr(node.func, "id", "")):
            strings = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [s.strip() for s in strings]
    # Below about a line, a docstring is a label.
    yield "", "\n\n".join(dict.fromkeys(s for s in found if len(s) >= 80))


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
    patterns: tuple[str, ...]
    extract: Callable[[str], Iterator[tuple[str, str]]] = _code
    cap: int = 9_000_000  # bytes


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
    ["test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "encodings", "benchmarks", "_antlr", "tkinter", "turtledemo", "distutils", "ops", "generated", "cuda", "cudnn", "hip", "miopen", "mps", "xpu", "sycl", "mkldnn"]
)
_SKIPPED_FILES = re.compile(
    r"test_|conftest|_sysconfig|sitecustomize|usercustomize"
    r"|VmapGenerated|RegistrationDeclarations|TensorBody|RedispatchFunctions|MethodOperators"  # torchgen's, unmarked
)
_GENERATED = re.compile(
    r"@generated|auto-?generated|automatically generated|generated (by|from)|do not edit", re.I
)
_LICENCE = re.compile(r"copyright|licen[sc]e|warrant", re.I)


def embedded_versions() -> dict[str, str]:
    """What the embedded text is made of, package by package."""
    versions = {"python": platform.python_version()}
    for package in sorted({s.package for s in SOURCES} - {"stdlib"}):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"the embedded text needs the package {package}, which is not installed; "
                "install it or give text of your own with data.path=FOLDER"
            ) from None
    return versions


def embedded(progress: Callable[[float], None] = lambda share: None) -> tuple[Domain, ...]:
    """The embedded corpus, documents in the order of their names. `progress` gets the share that is done."""
    documents: dict[str, list[Document]] = {}
    seen: set[str] = set()  # digests of documents and of licence paragraphs
    for i, source in enumerate(SOURCES):
        chosen, size = [], 0
        files = _files(source)
        for j, (name, file) in enumerate(files):
            progress((i + j / len(files)) / len(SOURCES))
            for document in _read(source, name, file, seen):
                chosen.append(document)
                size += document.size
            if size >= source.cap:
                break
        if not chosen:
            raise ValueError(
                f"the embedded text: nothing to read in {_root(source.package)} for the domain {source.domain!r}; "
                "give text of your own with data.path=FOLDER"
            )
        documents.setdefault(source.domain, []).extend(chosen)
    return tuple(
        Domain(name=name, documents=tuple(sorted(chosen, key=lambda d: d.name)))
        for name, chosen in documents.items()
    )


def _root(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the embedded text needs the package {package}, which has no folder here")
    return Path(spec.submodule_search_locations[0])


def _files(source: _Source) -> list[tuple[str, Path]]:
    """(name, path) of a source's files in the order of their names' hash, so that a cap takes from everywhere."""
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
        document = _document(name + suffix, _without_known_licences(part, seen))
        if document.size >= 200 and not _is_table(part) and document.digest not in seen:
            seen.add(document.digest)
            yield document


def _without_known_licences(text: str, seen: set[str]) -> str:
    """The text less those paragraphs near its start that speak of licence or copyright and were seen before."""
    head, kept = text[:6000], []
    for paragraph in re.split(r"(?<=\n)(?=\s*\n)", head):
        if _LICENCE.search(paragraph):
            key = re.sub(
                r"[^a-z]+", "", paragraph.lower()
            )  # years and comment marks do not make it another text
            if key in seen:
                continue
            seen.add(key)
        kept.append(paragraph)
    return "".join(kept).lstrip("\n") + text[6000:]


def _is_table(text: str) -> bool:
    """Whether less than 60 % of the text is letters and white space: numbers, escapes, code points."""
    return sum(map(len, re.findall(r"[A-Za-z\s]+", text))) < 0.6 * len(text)


# ----------------------------------------------------------------------------------------- text of one's own


def folder(
    path: str, progress: Callable[[float], None] = lambda share: None
) -> tuple[tuple[Domain, ...], int]:
    """The domains of a folder or glob, in the order of their names, and the number of files skipped."""
    root, files = _matches(path)
    domains: dict[str, list[Document]] = {}
    seen: set[str] = set()
    skipped = 0
    for i, file in enumerate(files):
        progress(i / len(files))
        relative = file.relative_to(root)
        text = read_text(file)
        if text is None:
            skipped += 1
            continue
        document = _document(relative.as_posix(), text, file)
        if document.digest not in seen:
            seen.add(document.digest)
            name = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name or "text"
            domains.setdefault(name, []).append(document)
    if not domains:
        raise ValueError(f"data.path={path!r}: no text in it ({skipped} files, each empty or not UTF-8 text)")
    return tuple(Domain(name=name, documents=tuple(domains[name])) for name in sorted(domains)), skipped


def _matches(path: str) -> tuple[Path, list[Path]]:
    """The folder that domains are counted from, and the files below it, sorted; hidden ones are left out."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = [f for f in root.rglob("*") if f.is_file()]
    elif root.is_file():
        root, files = root.parent, [root]
    elif glob.has_magic(path):
        fixed = []
        for part in root.parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        files = [f for f in map(Path, glob.glob(str(root), recursive=True)) if f.is_file()]
        root = Path(*fixed)
        if not files:
            raise ValueError(f"data.path={path!r}: no file matches")
    else:
        raise ValueError(f"data.path={path!r}: no such file or folder")
    visible = [f for f in files if not any(part.startswith(".") for part in f.relative_to(root).parts)]
    if not visible:
        raise ValueError(f"data.path={path!r}: the folder has no files")
    return root, sorted(visible, key=lambda f: f.relative_to(root).as_posix())
