"""What `bench` sends: random rows made from the deployment's signature, or a file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cli_state import UsageError
from .records import Record
from .uploads import write_npz

KINDS = {
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
}
VARIANTS = 8  # different bodies, sent in turn


@dataclass(frozen=True)
class Bodies:
    """What is sent in turn. told: what it is, in words."""

    content_type: str
    bodies: tuple[bytes, ...]
    rows: int
    told: str


def from_file(path: Path, as_json: bool, rows: int) -> Bodies:
    """The bytes of a file as they are; arrays as JSON where that is asked for. Raises UsageError, OSError."""
    content_type = KINDS.get(path.suffix.lower())
    if content_type is None:
        raise UsageError(f"--input takes {', '.join(KINDS)}, not {path.name}")
    body = path.read_bytes()
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            found = np.load(io.BytesIO(body), allow_pickle=False)
            arrays = {name: found[name] for name in found.files} if path.suffix.lower() == ".npz" else {"": found}
        except (ValueError, OSError, EOFError) as error:
            raise UsageError(f"{path.name} cannot be read as {path.suffix}: {error}") from None
        rows = max((len(a) for a in arrays.values() if a.ndim), default=1)
        if as_json:
            inputs = arrays[""].tolist() if "" in arrays else {name: a.tolist() for name, a in arrays.items()}
            content_type, body = KINDS[".json"], json.dumps({"inputs": inputs}).encode()
    elif path.suffix.lower() == ".json":
        try:
            given = json.loads(body)
        except ValueError as error:
            raise UsageError(f"{path.name} is no JSON: {error}") from None
        if not (isinstance(given, dict) and "inputs" in given):
            body = json.dumps({"inputs": given}).encode()
    return Bodies(content_type, (body,), rows, path.name)


def made_up(version: Record, as_json: bool, rows: int) -> Bodies:
    """Random rows of the right dtype and shape. Raises UsageError where the signature does not say the shape."""
    tensors = version["signature"]["inputs"]
    known = (version.get("details") or {}).get("shapes") or {}
    as_json = as_json or any(t["dtype"] == "string" for t in tensors)
    random = np.random.default_rng(0)
    bodies: list[bytes] = []
    for _ in range(VARIANTS):
        arrays = {t["name"]: _tensor(t, known.get(t["name"]), rows, random) for t in tensors}
        bodies.append(_body(arrays, as_json))
    content_type = KINDS[".json" if as_json else ".npy" if len(tensors) == 1 else ".npz"]
    shapes = ", ".join(f"{name} {array.dtype.name} {list(array.shape)}" for name, array in arrays.items())
    return Bodies(content_type, tuple(bodies), rows, f"random {shapes}")


def _tensor(
    tensor: Mapping[str, Any], known: list[int] | None, rows: int, random: np.random.Generator
) -> npt.NDArray[Any]:
    shape = [int(n) for n in tensor["shape"]]
    for axis, n in enumerate(shape):
        if n == -1 and axis == tensor["batch_axis"]:
            shape[axis] = rows
        elif n == -1:
            if known is None or len(known) != len(shape) or known[axis] < 1:
                raise UsageError(
                    f"input {tensor['name']!r} has the shape {tensor['shape']}, and nothing says how large its dynamic "
                    "dimensions are: give an example with --input FILE (.npy, .npz, .json, .jpg)"
                )
            shape[axis] = known[axis]
    dtype = tensor["dtype"]
    if dtype == "string":
        return np.full(shape, "a word or two")
    if dtype == "bool":
        return random.random(shape) < 0.5
    if "int" in dtype:
        return random.integers(0, 8, shape).astype(dtype)  # small enough to be the number of a word, or a class
    return random.standard_normal(shape).astype("float32" if dtype == "bfloat16" else dtype)


def _body(arrays: dict[str, npt.NDArray[Any]], as_json: bool) -> bytes:
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    if as_json:
        inputs = only.tolist() if only is not None else {name: a.tolist() for name, a in arrays.items()}
        return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    held = io.BytesIO()
    if only is not None:
        np.save(held, only, allow_pickle=False)
    else:
        write_npz(held, arrays)
    return held.getvalue()
