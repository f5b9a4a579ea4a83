"""A request of the Open Inference Protocol → arrays that fit a signature. Tensors come as JSON, or as bytes behind it.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from app.errors import BadRequest
from app.serving import oip_json
from app.serving.oip import Form, Taken
from app.serving.oip_outputs import Want, flag_in, object_in, refuse_shared, wants_of
from app.serving.oip_values import from_json, strings, wrong

_LENGTH = "Inference-Header-Content-Length"
# Clients send the same header with every binary tensor, and reading it takes longer than taking the tensor.
_KEPT, _KEPT_BYTES = 64, 2048
_LONGEST_US = 24 * 3600 * 1_000_000


class Piece(NamedTuple):
    """Where the bytes of one input lie behind the JSON. values: how many it has."""

    taken: Taken
    shape: tuple[int, ...]
    values: int
    start: int
    size: int


class Header(NamedTuple):
    """The JSON of a request, read and found right. size: of all pieces. lean: whether every output is asked for as the
    bytes that it is. timeout_us: 0 for none."""

    id: str | None
    given: dict[str, npt.NDArray[Any]]
    pieces: tuple[Piece, ...]
    size: int
    wants: tuple[Want, ...]
    lean: bool = False
    priority: int = 0
    timeout_us: int = 0


def read(form: Form, body: bytes, length: bytes | None) -> tuple[Header, dict[str, npt.NDArray[Any]]]:
    """The header, and every input by name: views of `body` where the tensors come as bytes.

    length: the header Inference-Header-Content-Length. Raises BadRequest.
    """
    if length is None:
        header, at = _header(form, body, has_length=False), len(body)
    else:
        at = json_length(length, len(body))
        if at == 0:
            return _bare(form, body)
        head = body[:at]
        known: Header | None = form.headers.get(head) if at <= _KEPT_BYTES else None
        if known is None:
            header = _header(form, head, has_length=True)
            if at <= _KEPT_BYTES and header.id is None and not header.given:
                if len(form.headers) >= _KEPT:
                    form.headers.clear()
                form.headers[head] = header
        else:
            header = known
    if len(body) - at != header.size:
        raise BadRequest(
            f"the inputs' binary_data_size are {header.size} bytes together, and {len(body) - at} follow the JSON",
            code="bad_tensor",
            hint="the bytes of each tensor follow the JSON in the order of the inputs, without gaps",
        )
    inputs = header.given.copy()
    for taken, shape, count, start, size in header.pieces:
        if taken.datatype == "BYTES":
            inputs[taken.name] = strings(taken, body[at + start : at + start + size], count).reshape(shape)
            continue
        found = taken.array(body, count, at + start)
        if taken.datatype == "BOOL" and found.view(np.uint8).max(initial=0) > 1:
            raise wrong(taken, "holds bytes other than 0 and 1", form)
        inputs[taken.name] = found.reshape(shape)
    return header, inputs


def json_length(given: bytes, body: int) -> int:
    """The length of the JSON in a body of so many bytes. Raises BadRequest."""
    if not given.isdigit() or len(given) > 18:
        raise BadRequest(
            f"{_LENGTH} must be a number of bytes, not {given[:40].decode('latin-1')!r}", code="bad_header_length"
        )
    if (length := int(given)) > body:
        raise BadRequest(
            f"{_LENGTH} is {length}, and the body has {body} bytes",
            code="bad_header_length",
            hint="it is the length of the JSON alone, before any compression",
        )
    return length


def _header(form: Form, head: bytes, *, has_length: bool) -> Header:
    given = _json(head, has_length)
    parameters = object_in(given, "parameters", "the request")
    everything = flag_in(parameters, "binary_data_output", "the request") or False
    entries = given.get("inputs")
    if not isinstance(entries, list):
        raise _shapeless("inputs", "is missing" if entries is None else "must be a list", form)
    arrays: dict[str, npt.NDArray[Any]] = {}
    pieces: list[Piece] = []
    seen: set[str] = set()
    size = 0
    for number, entry in enumerate(entries):
        taken, shape, count = _described(entry, number, seen, form)
        binary = _binary_size(entry, taken, has_length)
        if binary is None:
            arrays[taken.name] = from_json(taken, shape, count, entry, head, form)
            continue
        if taken.datatype != "BYTES" and binary != count * taken.wire.itemsize:
            needed = count * taken.wire.itemsize
            raise wrong(taken, f"of shape {list(shape)} is {needed} bytes, and its binary_data_size {binary}", form)
        pieces.append(Piece(taken, shape, count, size, binary))
        size += binary
    if missing := [name for name in form.inputs if name not in seen]:
        raise BadRequest(f"the inputs {missing} are missing", code="bad_tensor", hint=form.takes)
    wants = wants_of(given, everything, form)
    return Header(
        _id(given),
        arrays,
        tuple(pieces),
        size,
        wants,
        all(w.binary and not w.classes and form.outputs[w.name] != "BYTES" for w in wants),
        _whole(parameters, "priority", "a level: 1 is the highest, 0 the usual one"),
        min(_LONGEST_US, _whole(parameters, "timeout", "microseconds")),
    )


def _json(head: bytes, has_length: bool) -> dict[str, Any]:
    try:
        given = oip_json.loads(head)
    except orjson.JSONDecodeError as error:
        where = f"the first {len(head)} bytes of the body are" if has_length else "the body is"
        hint = "NaN and Infinity are no JSON; and where binary tensors follow, {} is exactly the length of the JSON"
        raise BadRequest(f"{where} no valid JSON: {error}"[:300], code="bad_json", hint=hint.format(_LENGTH)) from None
    if not isinstance(given, dict):
        raise BadRequest('the JSON must be an object {"inputs": [...]}', code="bad_json", hint="/docs has an example")
    return given


def _described(entry: Any, number: int, seen: set[str], form: Form) -> tuple[Taken, tuple[int, ...], int]:
    """The input that an entry names, its shape, and how many values that is; `seen` learns of it."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("name"), str):
        raise _shapeless(f"inputs[{number}]", "must be an object with a name", form)
    taken = form.inputs.get(name)
    if taken is None:
        raise BadRequest(f"the model has no input {name[:80]!r}", code="bad_tensor", hint=form.takes)
    if name in seen:
        raise BadRequest(f"input {name!r} is given twice", code="bad_tensor", hint="give every input once")
    seen.add(name)
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype != taken.datatype:
        said = f"its datatype is {str(datatype)[:40]!r}" if datatype is not None else "has no datatype"
        raise wrong(taken, said, form)
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int}:
        raise wrong(taken, "its shape must be a list of whole numbers", form)
    _fit(taken, shape, form)
    return taken, tuple(shape), math.prod(shape)


def _fit(taken: Taken, shape: list[int], form: Form) -> None:
    wanted = taken.shape
    if len(shape) == len(wanted) and all(a > 0 if w == -1 else a == w for a, w in zip(shape, wanted, strict=True)):
        return
    said = str(shape) if len(shape) <= 16 else f"of {len(shape)} dimensions"
    if any(n < 0 for n in shape):
        raise wrong(taken, f"its shape is {said}: a dimension cannot be negative", form)
    if 0 in shape:
        raise wrong(taken, f"its shape is {said}: it is empty", form)
    if form.batched and len(shape) == len(wanted) - 1:
        raise wrong(taken, f"its shape is {said}: the batch axis is missing, one row is {[1, *shape]}", form)
    raise wrong(taken, f"its shape is {said}", form)


def _binary_size(entry: dict[str, Any], taken: Taken, has_length: bool) -> int | None:
    """How many bytes behind the JSON are this input's; None where it comes as JSON."""
    where = f"input {taken.name!r}"
    if not entry.get("parameters"):
        return None
    parameters = object_in(entry, "parameters", where)
    refuse_shared(parameters, where)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadRequest(
            f"{where}: binary_data_size must be a number of bytes, not {str(size)[:40]}", code="bad_tensor"
        )
    if "data" in entry:
        raise BadRequest(f"{where} has both data and a binary_data_size", code="bad_tensor", hint="send one of them")
    if not has_length:
        raise BadRequest(
            f"{where} has a binary_data_size, and the header {_LENGTH} is missing",
            code="bad_header_length",
            hint="it says how long the JSON is; the bytes follow it",
        )
    return size


def _bare(form: Form, body: bytes) -> tuple[Header, dict[str, npt.NDArray[Any]]]:
    """A header length of 0: the body is the one input itself, a single row. Raises BadRequest."""
    taken = next(iter(form.inputs.values()))
    shape = [1, *taken.shape[1:]] if form.batched else list(taken.shape)
    if len(form.inputs) > 1 or taken.wire.hasobject or shape.count(-1) > 1:
        raise BadRequest(
            f"{_LENGTH} is 0, and this model's inputs cannot be told from their bytes alone",
            code="bad_header_length",
            hint=f"begin the body with JSON; {form.takes}",
        )
    if -1 in shape:
        one = taken.wire.itemsize * math.prod(n for n in shape if n != -1)
        shape[shape.index(-1)] = max(1, len(body) // max(1, one))
    count = math.prod(shape)
    if len(body) != count * taken.wire.itemsize:
        needed = count * taken.wire.itemsize
        raise wrong(taken, f"one row of it is {needed} bytes, and the body without JSON has {len(body)}", form)
    header = Header(None, {}, (), 0, wants_of({}, False, form))
    return header, {taken.name: taken.array(body, count).reshape(shape)}


def _id(given: dict[str, Any]) -> str | None:
    found = given.get("id")
    if found is not None and not isinstance(found, str):
        raise BadRequest(f"id must be a string, not {str(found)[:40]}", code="bad_request", hint='such as "42"')
    return found or None


def _whole(parameters: dict[str, Any], name: str, what: str) -> int:
    found = parameters.get(name)
    if found is None:
        return 0
    if type(found) is not int or found < 0:
        raise BadRequest(f"the parameter {name} must be a whole number, not {str(found)[:40]!r}", hint=f"it is {what}")
    return found


def _shapeless(what: str, why: str, form: Form) -> BadRequest:
    hint = f'such as {{"inputs": [{{"name", "datatype", "shape", "data"}}]}}; {form.takes}'
    return BadRequest(f"{what} {why}", code="bad_tensor", hint=hint)
