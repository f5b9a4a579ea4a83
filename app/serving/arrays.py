"""numpy's own file formats as bodies of requests and answers: .npy and .npz, without pickles and without surprises."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt

from app.domain.records import Signature
from app.errors import BadRequest, BadTensor, NotAcceptable, TooLarge

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: ("<H", 2), 2: ("<I", 4), 3: ("<I", 4)}
_LONGEST_HEADER = 10_000
_LITTLE = 64 * 1024
_one_parser = threading.Lock()
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def from_npy(body: bytes, what: str = "the body") -> npt.NDArray[Any]:
    """The array of an .npy file, as a view of `body` where possible. Raises BadRequest, BadTensor."""
    dtype, shape, fortran, start = header(body, what)
    count = math.prod(shape)
    given = len(body) - start
    if given != count * dtype.itemsize:
        raise BadRequest(
            f"{what} is a broken .npy file: {list(shape)} of {dtype.name} are {count * dtype.itemsize} bytes, "
            f"and it has {given}",
            code="bad_npy",
        )
    flat = np.frombuffer(body, dtype, count, start)
    array = flat.reshape(shape, order="F" if fortran else "C")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if fortran and array.ndim else array


def header(body: bytes, what: str = "the body") -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, whether in Fortran order, and where the data begin. Raises BadRequest, BadTensor."""
    if body[:6] != _MAGIC or len(body) < 10 or body[6] not in _LENGTHS:
        raise BadRequest(
            f"{what} is no .npy file: it does not begin as one", code="bad_npy", hint="numpy.save makes one"
        )
    form, width = _LENGTHS[body[6]]
    start = 8 + width
    length = struct.unpack_from(form, body, 8)[0] if len(body) >= start else _LONGEST_HEADER
    if length >= _LONGEST_HEADER or len(body) < start + length:
        raise BadRequest(f"{what} is a broken .npy file: its header is cut off or too long", code="bad_npy")
    return *_header(body[: start + length], what), start + length


@lru_cache(maxsize=256)
def _header(head: bytes, what: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """dtype, shape, Fortran order. Clients send the same header again and again, and parsing one takes 30 µs."""
    dtype, shape, fortran = _as_numpy_writes(head) or _as_python_reads(head, what)
    if dtype.hasobject:
        raise BadTensor(f"{what} holds Python objects: they are never unpickled", hint="send numbers")
    if dtype.kind not in "biuf" or any(type(n) is not int or n < 0 for n in shape):
        raise BadTensor(f"{what} holds {dtype} {list(shape)}", hint="send a plain array of numbers")
    return dtype, tuple(shape), bool(fortran)


_ORDINARY = re.compile(
    rb"\x93NUMPY.{4}\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n",
    re.DOTALL,
)


def _as_numpy_writes(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool] | None:
    """A header of the form that every numpy writes; None for any other."""
    found = _ORDINARY.fullmatch(head)
    if found is None:
        return None
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError:
        return None
    return dtype, tuple(int(n) for n in found[3].split(b",") if n.strip()), found[2] == b"True"


def _as_python_reads(head: bytes, what: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """numpy's own parser: of an expression of Python's, one at a time, because Python 3.11 sometimes fails at two."""
    stream = io.BytesIO(head)
    try:
        with _one_parser, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(stream)
            read = npy_format.read_array_header_1_0 if version[0] == 1 else npy_format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
    except Exception as error:
        # The parser raises whatever ast and numpy.dtype do.
        raise BadRequest(f"{what} is a broken .npy file: {error}"[:300], code="bad_npy") from None
    return dtype, shape, fortran


def from_npz(body: bytes, names: set[str], limit: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file whose members are `names`. Raises BadRequest, BadTensor, TooLarge.

    limit: what all members together may unpack to, in bytes; looked at before anything is unpacked.
    """
    with _opened(body) as archive:
        members = _members(archive, names, limit)
        return {name: from_npy(archive.read(info), f"{name}.npy") for name, info in members.items()}


def unpacked_bytes(body: bytes, signature: Signature, limit: int) -> int:
    """What an .npz file for the inputs of a signature unpacks to: more than that is never taken out of it. Raises what
    `from_npz` does."""
    with _opened(body) as archive:
        return sum(info.file_size for info in _members(archive, {t.name for t in signature.inputs}, limit).values())


@contextlib.contextmanager
def _opened(body: bytes) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BadRequest(
            f"the body is no .npz file: {error}"[:300], code="bad_npz", hint="numpy.savez makes one"
        ) from None


def _members(archive: zipfile.ZipFile, names: set[str], limit: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    found = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(found) != len(infos) or found.keys() != names:
        wanted = [f"{name}.npy" for name in sorted(names)]
        held = sorted(info.filename for info in infos[:16])
        raise BadTensor(f"the .npz holds {held}", hint=f"the model takes one member per input: {wanted}")
    total = sum(info.file_size for info in infos)
    if total > limit:
        raise TooLarge(f"the .npz unpacks to {total} bytes, more than {limit}", hint="send fewer rows at a time")
    if any(info.flag_bits & 1 or info.compress_type not in _METHODS for info in infos):
        raise BadTensor("the .npz is encrypted or packed in an unusual way", hint="numpy.savez and savez_compressed do")
    return found


def to_npy(array: npt.NDArray[Any]) -> bytes:
    """An .npy file. Raises NotAcceptable for strings, which numpy could only pickle."""
    if array.dtype.hasobject:
        raise NotAcceptable("strings cannot be answered as .npy", hint="Accept: application/json")
    head = _written(array.dtype, array.shape)
    if array.nbytes < _LITTLE:
        return head + array.tobytes()
    return b"".join((head, np.ascontiguousarray(array).data))  # copied once


@lru_cache(maxsize=256)
def _written(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of an array in C order, which takes longer to make than the rest of a small file."""
    stream = io.BytesIO()
    described = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(stream, described)
    return stream.getvalue()


def to_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """An .npz file, not compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", to_npy(array))
    return stream.getvalue()
