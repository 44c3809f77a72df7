"""Documents of a data set that the package `datasets` reads, one after another, never as a whole.

    hf:PLACE[@REVISION][:CONFIG[:SPLIT]]

PLACE is a data set of the hub (owner/name), or on this machine a folder (as the hub lays data sets out, or as
`save_to_disk` wrote it), a file, or a glob of files: Parquet, JSON lines, Arrow or CSV, compressed or not. The split is
`train` where there is one. A data set of the hub is streamed: nothing of it is kept but its tokens.

Read are Arrow tables, a few rows at a time, from a state that can be saved, so that a read goes on where it was
stopped. Nothing is pickled, and no code of a data set is run: `datasets` refuses scripts, and only the formats above
are read. The identity of local data is the sha256 of its files, that of hub data its revision (a commit).

Needs the extra `hf`, which is imported when a data set is read.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zslx.config.groups import DATA_SET

ROWS = 256  # read at once
KINDS = ("parquet", "json", "arrow", "csv")
ENDINGS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".arrow": "arrow",
    ".csv": "csv",
}
PACKED = {".gz": 3.0, ".zst": 3.0, ".bz2": 4.0, ".xz": 4.0}  # and how many bytes of text one byte is, about

State = dict[str, Any]  # where a read is, as `datasets` tells it: JSON values


@dataclass(frozen=True)
class Row:
    """One document: its text, None where it has none (null, blank, or not UTF-8), and its domain."""

    text: str | None
    domain: str


@dataclass(frozen=True)
class DataSet:
    """A data set that was found: where its documents are, and what its tokens depend on."""

    path: str  # the setting data.path
    builder: Any
    split: str
    files: tuple[str, ...]
    identity: dict[str, Any]

    def rows(
        self, text_column: str, domain_column: str, state: State | None = None
    ) -> Iterator[tuple[list[Row], State]]:
        """Documents in their order, some at a time, each time with the state from which the rest can be read.

        ValueError for a column that there is not, and for a file that cannot be read; it names the file.
        """
        stream = self.builder.as_streaming_dataset(split=self.split).with_format("arrow")
        if state is not None:
            stream.load_state_dict(state)
        tables = stream.iter(batch_size=ROWS)
        while True:
            with self._errors(stream):
                table = next(tables, None)
            if table is None:
                return
            texts = _text(_column(table, text_column, f"{self.path}: data.text_column"), text_column, self.path)
            domains = ["text"] * len(texts)
            if domain_column:
                domains = _names(_column(table, domain_column, f"{self.path}: data.domain_column"), domain_column)
            yield [Row(*row) for row in zip(texts, domains, strict=True)], stream.state_dict()

    def text_bytes(self, text_column: str) -> float | None:
        """About how many bytes of text there are; None where nothing says so."""
        if not self.local:
            split = (self.builder.info.splits or {}).get(self.split)
            return float(split.num_bytes) if split is not None and split.num_bytes else None
        return sum(_text_bytes(Path(file), text_column) for file in self.files)

    @property
    def local(self) -> bool:
        return "revision" not in self.identity

    @contextmanager
    def _errors(self, stream: Any) -> Iterator[None]:
        """Whatever `datasets` and the file systems below it raise, as one line that names the file."""
        try:
            with _quiet():
                yield
        except Exception as error:
            shard = _shard(stream.state_dict())
            where = self.files[shard] if shard is not None and shard < len(self.files) else self.path
            cause = error.__cause__ or error
            raise ValueError(
                f"data.path={self.path!r}: cannot read {where}: {_first_line(cause)}"
                + ("" if self.local else "; what is done is kept, and the same command goes on")
            ) from error


def is_data_set(path: str) -> bool:
    return path.startswith(DATA_SET)


def parsed(path: str) -> tuple[str, str, str, str]:
    """(place, revision, config, split) of a data.path; those that it does not name are empty."""
    place, *rest = path.removeprefix(DATA_SET).split(":")
    place, _, revision = place.partition("@")
    if not place or len(rest) > 2:
        raise ValueError(f"data.path={path!r}: a data set is written {DATA_SET}PLACE[@REVISION][:CONFIG[:SPLIT]]")
    config, split = (*rest, "", "")[:2]
    return place, revision, config, split


def local_files(path: str) -> str | None:
    """The folder, file or glob on this machine that a data.path names; None where it names a data set of the hub."""
    place = parsed(path)[0]
    found = Path(place).expanduser()
    if found.exists() or glob.has_magic(place):
        return place
    if place.startswith(("/", ".", "~")) or place.count("/") != 1 or any(place.endswith(end) for end in ENDINGS):
        raise ValueError(f"data.path={path!r}: no such file or folder, and the hub's data sets are named owner/name")
    return None


def found(path: str, progress: Callable[[float], None] = lambda share: None) -> DataSet:
    """The data set of a data.path. Of local files each is read once, for its checksum."""
    place, revision, config, split = parsed(path)
    local = local_files(path)
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(f"data.path={path!r} needs the package datasets: pip install 'zslx[hf]'") from None
    if local is not None and revision:
        raise ValueError(f"data.path={path!r}: @{revision} is a revision of the hub, and {place} is on this machine")
    commit = _commit(path, place, revision) if local is None else ""
    files = _matches(path, local) if local is not None else []
    try:
        with _quiet():
            if files:
                if config:
                    raise ValueError(f"files have no configurations, and {config!r} is given")
                builder = datasets.load_dataset_builder(_kind(path, files), data_files=files)
            elif local is not None:
                builder = datasets.load_dataset_builder(str(Path(local).expanduser()), name=config or None)
            else:
                builder = datasets.load_dataset_builder(place, name=config or None, revision=commit)
    except Exception as error:
        raise ValueError(f"data.path={path!r}: {_first_line(error)}") from error
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in KINDS:
        raise ValueError(f"data.path={path!r} is of kind {kind}; allowed are {', '.join(KINDS)}")
    splits = {str(name): tuple(map(str, own)) for name, own in (builder.config.data_files or {}).items()}
    split = split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if split not in splits:
        raise ValueError(f"data.path={path!r}: there is no split {split!r}; there are {', '.join(splits)}")
    identity: dict[str, Any] = {"kind": kind, "config": builder.config.name, "split": split}
    if local is None:
        identity |= {"name": place, "revision": commit}
    else:
        identity["files"] = _checksums(splits[split], progress)
    return DataSet(path=path, builder=builder, split=split, files=splits[split], identity=identity)


def _commit(path: str, name: str, revision: str) -> str:
    """The commit that a revision of a data set on the hub is now. A commit itself asks nobody."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision or None).sha)
    except Exception as error:
        raise ValueError(
            f"data.path={path!r}: no such folder here, and the hub does not answer for {name}: {_first_line(error)}"
        ) from error


def _matches(path: str, place: str) -> list[str]:
    """The files of a file or glob, sorted; none for a folder."""
    root = Path(place).expanduser()
    if root.is_dir():
        return []
    files = [root] if root.is_file() else [Path(p) for p in glob.glob(str(root), recursive=True)]
    files = sorted(file.absolute() for file in files if file.is_file())
    if not files:
        raise ValueError(f"data.path={path!r}: no files there")
    return [str(file) for file in files]


def _kind(path: str, files: list[str]) -> str:
    kinds = {ENDINGS.get(_ending(Path(file))[0]) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"files must be of one kind, and end in {', '.join(ENDINGS)}, with or without {', '.join(PACKED)}"
        )
    return str(kinds.pop())


def _ending(file: Path) -> tuple[str, float]:
    """(.jsonl, 3.0) of x.jsonl.gz: the ending that tells the kind, and how many bytes of text a byte is, about."""
    packed = PACKED.get(file.suffix, 0.0)
    return Path(file.stem).suffix if packed else file.suffix, packed or 1.0


def _text_bytes(file: Path, text_column: str) -> float:
    ending, factor = _ending(file)
    if ending != ".parquet":
        return file.stat().st_size * factor
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"data.path: cannot read {file}: {_first_line(error)}") from error
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_column)


def _checksums(files: tuple[str, ...], progress: Callable[[float], None]) -> list[list[str]]:
    """[name, sha256] of each file, whose names are relative to the folder that they share."""
    sizes = [Path(file).stat().st_size for file in files]
    done, total, found = 0, max(1, sum(sizes)), []
    for file, size in zip(files, sizes, strict=True):
        with Path(file).open("rb") as stream:
            found.append([Path(file).name, hashlib.file_digest(stream, "sha256").hexdigest()])
        done += size
        progress(done / total)
    return found


# ----------------------------------------------------------------------------------------------------- columns


def _column(table: Any, name: str, key: str) -> Any:
    """The column of a table, as one array; a.b is the field b of a."""
    import pyarrow
    import pyarrow.compute

    first, *fields = [name] if name in table.column_names else name.split(".")
    known = _known(table.schema)
    if name not in known and first not in table.column_names:
        raise ValueError(f"{key}={name!r}: there is no such column; there are {', '.join(known)}")
    column = table.column(first).combine_chunks()
    column = column if isinstance(column, pyarrow.Array) else pyarrow.concat_arrays(column.chunks)
    for field in fields:
        if not pyarrow.types.is_struct(column.type) or column.type.get_field_index(field) < 0:
            raise ValueError(f"{key}={name!r}: there is no such column; there are {', '.join(known)}")
        column = pyarrow.compute.struct_field(column, field)
    return column


def _known(schema: Any) -> list[str]:
    """Names of the columns and, after a dot, of their fields."""
    import pyarrow

    names = []
    for field in schema:
        names.append(field.name)
        if pyarrow.types.is_struct(field.type):
            names += [f"{field.name}.{inner.name}" for inner in field.type]
    return names


def _text(column: Any, name: str, path: str) -> list[str | None]:
    """Texts of a column of strings, read as bytes: a row that is not UTF-8 costs only itself."""
    import pyarrow

    kind = pyarrow.types
    if kind.is_null(column.type):
        return [None] * len(column)
    if not (kind.is_string(column.type) or kind.is_large_string(column.type) or kind.is_string_view(column.type)):
        raise ValueError(f"{path}: data.text_column={name!r} holds {column.type}, no text")
    return [_decoded(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | None:
    if value is None or b"\0" in value:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _names(column: Any, name: str) -> list[str]:
    """Domains of a column of strings, whole numbers or truth values; (none) where there is none."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind):
        values = column.cast(pyarrow.large_binary()).to_pylist()
        return ["(none)" if value is None else value.decode(errors="replace") or "(none)" for value in values]
    if pyarrow.types.is_null(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
        return ["(none)" if value is None else str(value) for value in column.to_pylist()]
    raise ValueError(f"data.domain_column={name!r} holds {kind}; allowed are text and whole numbers")


# ------------------------------------------------------------------------------------------------------ errors


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` logs an error before it raises it; ours says it once."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _shard(state: Any) -> int | None:
    """Which file is being read, from the innermost of nested states."""
    if not isinstance(state, dict):
        return None
    inner = state.get("examples_iterable")
    return _shard(inner) if inner is not None else state.get("shard_idx")


def _first_line(error: BaseException) -> str:
    return f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
