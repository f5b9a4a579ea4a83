"""Whether a file can be a checkpoint at all, by its first bytes and its list of files. Loading it is the worker's."""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from app.errors import BadCheckpoint, Problem, UnsupportedMedia
from app.intake import archives

Kind = Literal["zip", "tar", "packed_tar", "safetensors", "legacy_torch", "onnx"]
Window = Callable[[int, int], Awaitable[bytes]]  # the bytes start…end of the file

HEAD = 4096  # how many first bytes `recognise` wants to see
TAKEN = (
    "taken are: safetensors; a state_dict or whole torch.nn model as .pt, .pth or .th; TorchScript; ONNX; "
    "a Hugging Face folder (config.json and safetensors) as zip or tar"
)
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_READ_HEADER = 16 * 1024 * 1024
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}  # field → wire type
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"PAR1", "a parquet file"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"ptrt", "a TensorRT plan"),
    (0, b"ftrt", "a TensorRT plan"),
    (0, b"\x89PNG", "an image"),
    (0, b"\xff\xd8\xff", "an image"),
    (0, b"GIF8", "an image"),
    (0, b"%PDF", "a PDF"),
    (0, b"<", "a web page or XML"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"ZF", "a joblib file (scikit-learn)"),
)
_INSTEAD = {
    "a numpy array": "POST /v1/datasets takes arrays as .npz",
    "a parquet file": "POST /v1/datasets takes tables",
    "an HDF5 file (Keras)": "export it to ONNX: python -m tf2onnx.convert --keras …",
    "a TensorFlow Lite model": "export the model that it came from to ONNX",
    "a TensorRT plan": "upload the ONNX file that it was built from; a convert job builds the engine",
}


def recognise(head: bytes) -> Kind:
    """What a file claims to be, by its first `HEAD` bytes (or all of it).

    Raises BadCheckpoint when it is empty, UnsupportedMedia when it plainly is no checkpoint.
    """
    if not head:
        raise BadCheckpoint("the file is empty", code="empty_file", hint=TAKEN)
    if head[:4] == b"PK\x05\x06":
        raise BadCheckpoint("the zip archive is empty", code="empty_file", hint=TAKEN)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:3] in (b"\x1f\x8b\x08", b"BZh") or head[:6] == b"\xfd7zXZ\0":
        return "packed_tar"
    if head[257:262] == b"ustar":
        return "tar"
    for at, magic, name in _FOREIGN:
        if head[at : at + len(magic)] == magic:
            raise foreign(name)
    if len(head) > 9 and head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head)[0] <= _LARGEST_HEADER:
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        if _LEGACY in head[:32]:
            return "legacy_torch"
        raise UnsupportedMedia(
            "this is a bare pickle, not a file of torch.save: unpickling can run any program, so it is never done here",
            code="pickle_refused",
            hint=f"save the weights with torch.save(model.state_dict(), …) or safetensors; {TAKEN}",
        )
    if head[0] >> 3 in _ONNX_FIELDS and _ONNX_FIELDS[head[0] >> 3] == head[0] & 7:
        return "onnx"
    raise foreign("of a kind that is not known here")


def foreign(name: str) -> Problem:
    """The refusal of a file that is something else."""
    instead = _INSTEAD.get(name)
    return UnsupportedMedia(
        f"this is no checkpoint: the file is {name}",
        code="not_a_checkpoint",
        hint=f"{instead}; {TAKEN}" if instead else TAKEN,
    )


async def examine(kind: Kind, size: int, window: Window, *, max_files: int, max_bytes: int) -> None:
    """Checks what can be checked without loading: a zip's list, safetensors' header, ONNX's outermost fields.

    Raises BadCheckpoint, UnsupportedMedia, TooLarge.
    """
    if kind == "zip":
        tail = await window(max(0, size - archives.TAIL), size)
        found = archives.find_directory(tail, size)
        listing = await window(found.start, found.start + found.size)
        members = archives.read_directory(listing)
        classify(
            m.name for m in archives.guarded(members, archive_bytes=size, max_files=max_files, max_bytes=max_bytes)
        )
    elif kind == "safetensors":
        await _examine_safetensors(size, window)
    elif kind == "onnx":
        await _examine_onnx(size, window)


def classify(names: Iterable[str]) -> Literal["torch", "torchscript", "folder"]:
    """What an archive holds, by the names in it. Raises BadCheckpoint, UnsupportedMedia."""
    files = [n for n in names if not n.endswith("/")]
    if not files:
        raise BadCheckpoint("there is no file in the archive", code="empty_file", hint=TAKEN)
    last = {n.rsplit("/", 1)[-1] for n in files}
    inner = {n.split("/", 1)[-1] for n in files} | set(files)
    if _is_pt2(last, inner):
        raise pt2_refused()
    if "data.pkl" in last:
        is_script = "constants.pkl" in last and any("/code/" in f"/{n}" for n in files)
        return "torchscript" if is_script else "torch"
    if "extern_modules" in last:
        raise foreign("a torch.package archive, which is a program")
    if "model.weights.h5" in last:
        raise foreign("a Keras model")
    if "MANIFEST.json" in last and any(n.startswith("MAR-INF/") for n in files):
        raise foreign("a TorchServe archive")
    if "config.json" in last:
        if not any(n.endswith((".safetensors", ".bin", ".safetensors.index.json")) for n in files):
            raise BadCheckpoint(
                "there is a config.json in the archive, and no weights beside it",
                hint="pack the whole folder: config.json and model.safetensors",
            )
        return "folder"
    if all(n.endswith(".npy") for n in files):
        raise foreign("a numpy array")
    if any(n.endswith((".onnx", ".pt", ".pth", ".safetensors")) for n in files):
        raise UnsupportedMedia(
            "this archive holds model files, and no config.json that says how they belong together",
            code="not_a_checkpoint",
            hint=f"upload the model file itself, unpacked; {TAKEN}",
        )
    raise foreign("an archive of other things")


def _is_pt2(last: set[str], inner: set[str]) -> bool:
    """Archives of torch.export, old and new, and AOTInductor's packages."""
    if "serialized_exported_program.json" in last:
        return True
    if "archive_format" in inner:
        return any(n.startswith(("models/", "data/aotinductor/")) for n in inner)
    return False


def pt2_refused() -> Problem:
    return BadCheckpoint(
        "this is a .pt2 file (torch.export): loading one can run any program, so it is refused",
        code="pt2_refused",
        hint="on your side: `from enginesmith import export; export(model, example)` describes the network as data, "
        "and `enginesmith push` uploads it; or upload model.state_dict() with an `architecture`, or ONNX",
    )


async def _examine_safetensors(size: int, window: Window) -> None:
    (length,) = struct.unpack("<Q", await window(0, 8))
    if 8 + length > size:
        raise _cut_short(8 + length, size)
    if length > _READ_HEADER:
        return  # the worker reads it
    try:
        header = json.loads(await window(8, 8 + length))
        ends = [int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise BadCheckpoint("the header of this safetensors file is broken", hint="save it again") from None
    if not ends:
        raise BadCheckpoint("there is no tensor in this safetensors file", code="empty_file")
    if 8 + length + max(ends) != size:
        raise _cut_short(8 + length + max(ends), size)


async def _examine_onnx(size: int, window: Window) -> None:
    """Walks ModelProto's outermost fields; what is inside is for the onnx library."""
    at = start = 0
    held = b""
    seen: set[int] = set()
    for _ in range(100_000):
        if at >= size:
            break
        if not start <= at <= start + len(held) - 20:  # a tag and a length take 20 bytes at most
            start, held = at, await window(at, min(size, at + HEAD))
        tag, used = _varint(held, at - start)
        field, wire = tag >> 3, tag & 7
        if _ONNX_FIELDS.get(field) != wire:
            raise foreign("of a kind that is not known here")
        value, used = _varint(held, used)
        at = start + used + (value if wire == 2 else 0)
        seen.add(field)
        if at > size:
            raise _cut_short(at, size) if {1, 7} <= seen else foreign("of a kind that is not known here")
    if 7 not in seen:
        raise foreign("of a kind that is not known here")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise foreign("of a kind that is not known here")


def _cut_short(expected: int, size: int) -> Problem:
    return BadCheckpoint(
        f"the file was cut short: it says that it has {expected} bytes, and {size} have come"
        if size < expected
        else f"the file has {size} bytes where it says {expected}",
        code="truncated",
        hint="upload the whole file again; compare its size with the original's",
    )
