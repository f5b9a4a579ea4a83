"""Data sets of kind `table`: csv (also gzipped) or parquet, with one column to predict."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from app.errors import BadDataset, Problem, TooLarge
from app.intake.archives import told
from app.intake.draft import Intake, Rows, x_file
from app.intake.npy import Writer, check_finite
from app.intake.targets import as_targets, number_labels

_BLOCK = 1 << 20
_ROWS = 65_536


def read(given: Intake) -> Rows:
    """Streams features to float32 rows and collects the target. Raises BadDataset naming column and row."""
    try:
        schema, batches = _parquet(given) if _is_parquet(given) else _csv(given)
        features = _features(schema, given)
        return _rows(features, schema, batches, given)
    except pa.ArrowInvalid as error:
        raise _unreadable(str(error)) from None
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _unreadable(f"{type(error).__name__}: {error}") from None


def _rows(features: list[str], schema: Any, batches: Iterator[Any], given: Intake) -> Rows:
    target = given.manifest.target
    assert target is not None
    is_text = _is_text(schema.field(target).type)
    codes: dict[str, int] = {}  # in the order of their first appearance
    columns: list[npt.NDArray[Any]] = []
    with Writer(given.folder / x_file("train"), (len(features),), np.float32) as writer:
        for batch in batches:
            if not batch.num_rows:
                continue
            rows = np.empty((batch.num_rows, len(features)), np.float32)
            for i, name in enumerate(features):
                rows[:, i] = _numbers(batch.column(name), name, writer.rows)
            values = batch.column(target)
            if values.null_count:
                row = writer.rows + int(np.argmax(np.asarray(values.is_null())))
                raise BadDataset(f"the target {told(target)} is empty in row {row}", code="not_finite")
            columns.append(_codes(values, codes) if is_text else _plain(values))
            writer.append(rows)
            if len(codes) > 100_000:
                break
    if not columns:
        raise BadDataset("there is no row in the table", code="empty")
    y = np.concatenate(columns)
    if not is_text:
        return Rows((len(features),), "float32", {"train": as_targets(y, given.manifest.task, told(target))},
                    columns=tuple(features))  # fmt: skip
    if given.manifest.task == "regression":
        raise BadDataset(f"the target {told(target)} is text, which is no number", hint="task 'classification'")
    numbers = number_labels(list(codes), given.manifest.labels, f"the column {told(target)}")
    order = np.array([numbers[label] for label in codes], dtype=np.int64)
    labels = tuple(sorted(numbers, key=lambda label: numbers[label]))
    return Rows((len(features),), "float32", {"train": order[y]}, labels, tuple(features))


def _features(schema: Any, given: Intake) -> list[str]:
    """The columns to predict from. Raises BadDataset for columns that are not there or are no numbers."""
    manifest = given.manifest
    names = list(schema.names)
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise BadDataset(f"the column {told(doubled[0])} is there twice", code="bad_columns")
    wanted = [n for n in names if n != manifest.target] if manifest.features is None else manifest.features
    for name in [manifest.target, *wanted]:
        if name not in names:
            listed = ", ".join(told(n) for n in names[:20]) + (", …" if len(names) > 20 else "")
            raise BadDataset(
                f"there is no column {told(str(name))}",
                code="missing_column",
                hint=f"the columns are {listed}",
            )
    if not wanted:
        raise BadDataset("there is no column beside the target", code="bad_columns")
    wrong = [n for n in wanted if not _is_number(schema.field(n).type)]
    if wrong:
        kinds = ", ".join(f"{told(n)} ({schema.field(n).type})" for n in wrong[:10])
        raise BadDataset(
            f"columns that are no numbers: {kinds}",
            code="bad_columns",
            hint="encode them as numbers, or name the columns to use in `features`",
        )
    kind = schema.field(manifest.target).type
    if not (_is_number(kind) or _is_text(kind)):
        raise BadDataset(f"the target {told(str(manifest.target))} is {kind}; taken are numbers and texts")
    return list(wanted)


def _is_parquet(given: Intake) -> bool:
    with given.file.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(given: Intake) -> tuple[Any, Iterator[Any]]:
    file = pyarrow.parquet.ParquetFile(given.file, memory_map=False, pre_buffer=False)
    schema = file.schema_arrow
    if file.metadata.num_rows * len(schema.names) * 4 > given.max_bytes:
        raise TooLarge(f"the table would unpack to more than {given.max_bytes} bytes", code="archive_bomb")
    wanted = None
    if given.manifest.features is not None:
        wanted = [n for n in schema.names if n in given.manifest.features or n == given.manifest.target]
    step = max(64, min(_ROWS, _BLOCK * 4 // (8 * max(1, len(schema.names)))))
    return schema, file.iter_batches(batch_size=step, columns=wanted, use_threads=False)


def _csv(given: Intake) -> tuple[Any, Iterator[Any]]:
    """Types are those of the first MiB, and every feature is read as float64."""
    reading = pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK)
    try:
        parsing = pyarrow.csv.ParseOptions(delimiter=_delimiter(given))
        first = pyarrow.csv.open_csv(_opened(given), read_options=reading, parse_options=parsing)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise BadDataset("the table is empty", code="empty") from None
        raise
    schema = first.schema
    if all(_is_numeral(n) for n in schema.names):
        raise BadDataset(
            "the first line holds numbers, no names",
            code="bad_columns",
            hint="let the first line name the columns",
        )
    types = {
        f.name: pa.float64()
        for f in schema
        if f.name != given.manifest.target and (pa.types.is_integer(f.type) or pa.types.is_null(f.type))
    }
    converting = pyarrow.csv.ConvertOptions(column_types=types)
    reader = pyarrow.csv.open_csv(
        _opened(given), read_options=reading, parse_options=parsing, convert_options=converting
    )
    return reader.schema, iter(reader)


def _delimiter(given: Intake) -> str:
    """The comma, unless the first line has more semicolons or tabs."""
    with given.file.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(given.file) if is_packed else given.file.open("rb") as file:
        first = file.readline(_BLOCK)
    return max((",", ";", "\t"), key=lambda d: first.count(d.encode()))


class _Bounded(io.RawIOBase):
    """A gzipped file that may not unpack to more than so many bytes."""

    def __init__(self, file: gzip.GzipFile, most: int) -> None:
        self._file, self._left = file, most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_BLOCK if size is None or size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge("the packed table unpacks to more than is taken", code="archive_bomb")
        return data


def _opened(given: Intake) -> Any:
    with given.file.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return pa.OSFile(str(given.file))
    return pa.PythonFile(_Bounded(gzip.GzipFile(given.file), given.max_bytes), mode="r")


def _numbers(values: Any, name: str, first: int) -> npt.NDArray[np.float32]:
    """One column of a batch as float32. Raises BadDataset naming the row that is empty, NaN or infinite."""
    wide = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if values.null_count:
        row = first + int(np.argmax(np.asarray(values.is_null())))
        raise BadDataset(
            f"the column {told(name)} is empty in row {row}", code="not_finite", hint="fill or drop such rows"
        )
    check_finite(wide, first, f"the column {told(name)}")
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    check_finite(narrow, first, f"the column {told(name)} as float32")
    return narrow


def _plain(values: Any) -> npt.NDArray[Any]:
    if pa.types.is_decimal(values.type) or pa.types.is_float16(values.type):
        values = values.cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _codes(values: Any, codes: dict[str, int]) -> npt.NDArray[np.int64]:
    """Texts → numbers in the order of first appearance, which `codes` remembers."""
    packed = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    known = [codes.setdefault(str(label), len(codes)) for label in packed.dictionary.to_pylist()]
    places = np.asarray(packed.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.array(known, dtype=np.int64)[places]


def _is_number(kind: Any) -> bool:
    t = pa.types
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind) or t.is_null(kind) or t.is_decimal(kind)
    )


def _is_text(kind: Any) -> bool:
    t = pa.types
    if t.is_dictionary(kind):
        kind = kind.value_type
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def _is_numeral(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _unreadable(why: str) -> Problem:
    return BadDataset(
        f"the table cannot be read: {why[:300]}",
        code="bad_table",
        hint="csv in UTF-8 with a first line of names and commas between, or parquet",
    )
