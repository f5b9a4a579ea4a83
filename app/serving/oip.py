"""The Open Inference Protocol: its names of datatypes, and what of a served version every request needs at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from app.domain.bfloat16 import widened
from app.domain.records import Tensor
from app.domain.tensors import DTYPES
from app.errors import NotSupported

if TYPE_CHECKING:
    from app.serving.served import ServedLane

# The protocol's datatype of each of ours.
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32",
    "float64": "FP64", "string": "BYTES",
}  # fmt: skip
# The protocol's datatype of a numpy array, by numpy's letter for it.
OF_ARRAY = {np.dtype(name).char: DATATYPES[name] for name in DATATYPES if name not in ("bfloat16", "string")} | {
    "q": "INT64", "Q": "UINT64", "O": "BYTES", "U": "BYTES", "S": "BYTES",
}  # fmt: skip
_WIRE: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16)}
# JSON has no number of these widths: they travel as bytes only.
BINARY_ONLY = frozenset({"FP16", "BF16"})
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "schedule_policy",
    "statistics",
)


class Taken(NamedTuple):
    """What one input takes. shape: -1 is any size of at least 1. wire: the dtype of its bytes; BF16 comes as its bits,
    and is held as float32."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    wire: np.dtype[Any]
    tensor: Tensor

    @property
    def said(self) -> str:
        """`FP32 [-1, 1, 28, 28]`"""
        return f"{self.datatype} {list(self.shape)}"

    def array(self, data: bytes, count: int, at: int = 0) -> npt.NDArray[Any]:
        """So many numbers at a place of a body: a view of it, but for BF16."""
        found = np.frombuffer(data, self.wire, count, at)
        return widened(found) if self.datatype == "BF16" else found


class Form:
    """A lane as the protocol sees it. headers: requests' JSON headers that have been read before, see oip_request."""

    __slots__ = ("batched", "has_strings", "headers", "inputs", "labels", "name", "outputs", "version")

    def __init__(self, name: str, lane: ServedLane) -> None:
        signature = lane.signature
        self.name = name
        self.version = str(lane.version.version)
        self.labels = lane.version.labels
        self.batched = signature.batched
        self.inputs = {
            t.name: Taken(t.name, DATATYPES[t.dtype], t.shape, _WIRE.get(t.dtype, DTYPES[t.dtype]), t)
            for t in signature.inputs
        }
        self.outputs = {t.name: DATATYPES[t.dtype] for t in signature.outputs}
        self.has_strings = "BYTES" in (t.datatype for t in self.inputs.values())
        self.headers: dict[bytes, Any] = {}

    @property
    def takes(self) -> str:
        """What the model takes, for the hint of an error."""
        return "the model takes " + "; ".join(f"{t.name}: {t.said}" for t in self.inputs.values())


_forms: WeakKeyDictionary[ServedLane, Form] = WeakKeyDictionary()


def form_of(name: str, lane: ServedLane) -> Form:
    """The form of a lane that answers under a deployment's name; made once."""
    form = _forms.get(lane)
    if form is None or form.name != name:
        form = _forms[lane] = Form(name, lane)
    return form


def not_served(what: str, hint: str) -> NotSupported:
    """The error for parts of the protocol that other servers have."""
    return NotSupported(f"{what} not served here", hint=hint)
