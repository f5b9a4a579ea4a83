"""Arrays → an answer of the Open Inference Protocol: JSON, and behind it the tensors that were asked for as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from app.domain.bfloat16 import narrowed
from app.errors import Internal
from app.serving.oip import OF_ARRAY, Form
from app.serving.oip_request import Header

Outputs = Mapping[str, npt.NDArray[Any]]


def write(form: Form, header: Header, outputs: Outputs) -> tuple[bytes, int | None]:
    """(body, length of the JSON in it, or None where the body is all JSON).

    NaN and infinity become null in JSON; as bytes they stay what they are. Raises Internal for what an engine cannot
    have meant.
    """
    told: list[dict[str, Any]] = []
    body: list[Any] = [b""]
    for name, binary, classes in header.wants:
        array = outputs[name]
        if classes:
            array = classified(array, classes, form.labels, form.batched)
        datatype = OF_ARRAY.get(array.dtype.char)
        if datatype == "FP32" and form.outputs.get(name) == "BF16":
            array, datatype = narrowed(array), "BF16"
        if datatype is None:
            raise Internal(f"output {name!r} is {array.dtype}, of which the protocol has no datatype")
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if not binary:
            entry["data"] = _plain(array)
        else:
            piece = _packed(array) if datatype == "BYTES" else np.ascontiguousarray(array)
            entry["parameters"] = {"binary_data_size": len(piece) if isinstance(piece, bytes) else piece.nbytes}
            body.append(piece)
        told.append(entry)
    answer: dict[str, Any] = {"model_name": form.name, "model_version": form.version, "outputs": told}
    if header.id is not None:
        answer["id"] = header.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(body) == 1:
        return head, None
    body[0] = head
    return b"".join(body), len(head)


def _plain(array: npt.NDArray[Any]) -> Any:
    """The values in row-major order, as orjson writes them: null for NaN and infinity."""
    flat = array.reshape(-1)
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(flat)
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in flat.tolist()]


def _packed(array: npt.NDArray[Any]) -> bytes:
    """BYTES: each element as its length (4 bytes, little-endian) and itself."""
    parts: list[bytes] = []
    for value in array.reshape(-1).tolist():
        element = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        parts += (struct.pack("<I", len(element)), element)
    return b"".join(parts)


def classified(
    array: npt.NDArray[Any], count: int, labels: tuple[str, ...] | None, batched: bool
) -> npt.NDArray[np.object_]:
    """The classes of the highest values as "value:index[:label]", best first: [rows, n], or [n] without a batch.

    Triton's classification extension. Of equal values the lower index comes first; NaN comes last.
    """
    rows = array.reshape(array.shape[0], -1) if batched and array.ndim else array.reshape(1, -1)
    ranked = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    classes = rows.shape[1]
    # The last of the reversed row, so that a stable order keeps the lower index first.
    order = (classes - 1 - np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :count]
    names = labels if labels is not None and len(labels) == classes else None
    found = np.empty(order.shape, object)
    for row, (indices, values) in enumerate(zip(order.tolist(), rows.tolist(), strict=True)):
        for column, index in enumerate(indices):
            value = values[index]
            said = f"{value:f}:{index}" if isinstance(value, float) else f"{int(value)}:{index}"
            found[row, column] = f"{said}:{names[index]}" if names else said
    return found if batched and array.ndim else found[0]
