"""Plain JSON → tensors: nested lists, checked against the signature, with errors that say where.

What is all right seldom comes here: see `json_numbers`.
"""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from app.domain.records import Signature, Tensor
from app.domain.tensors import DTYPES, expected, misfit, wrong_names
from app.errors import BadRequest, BadTensor

_DEEPEST = 64
_COMMAS_BESIDE = 10_000


def parse(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        given = _parse_leniently(body, error)
    if not isinstance(given, dict) or "inputs" not in given:
        raise BadTensor('the body must be {"inputs": …}', hint='for one input {"inputs": [[…], …]}, a row each')
    if unknown := sorted(given.keys() - {"inputs", "outputs", "top_k"}):
        raise BadTensor(
            f"unknown fields {unknown[:8]}", hint="there are inputs, outputs and top_k", loc=(unknown[0][:80],)
        )
    return given


def _parse_leniently(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """A body with NaN or Infinity is no JSON, and is read all the same: so that the answer can say where they are."""
    if "depth" in str(error) or "ecursion" in str(error):
        raise BadTensor(
            "the body is nested too deep", code="too_deep", hint="nest as deep as the tensor has dimensions"
        )
    try:
        return json.loads(body)
    except RecursionError:
        raise BadTensor("the body is nested too deep", code="too_deep") from None
    except ValueError:
        raise BadRequest(f"the body is no valid JSON: {error}", code="bad_json") from None


def tensors(given: Any, signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Every input by name. Raises BadTensor."""
    if not isinstance(given, dict):
        if len(signature.inputs) > 1:
            raise wrong_names(signature, set())
        return {signature.inputs[0].name: array_of(signature.inputs[0], given)}
    names = {t.name for t in signature.inputs}
    if given.keys() != names:
        raise wrong_names(signature, set(given))
    return {t.name: array_of(t, given[t.name]) for t in signature.inputs}


def refuse_many(body: bytes, signature: Signature, rows: int) -> None:
    """Raises BadTensor, before a body is parsed, where it plainly holds more values than so many rows can have."""
    most = 0
    for tensor in signature.inputs:
        sizes = [rows if axis == tensor.batch_axis and size == -1 else size for axis, size in enumerate(tensor.shape)]
        if -1 in sizes:
            return
        most += math.prod(sizes)
    # Lists of n values in all have n - 1 commas, however they are nested; the rest is names.
    given = body.count(b",")
    if given > most + _COMMAS_BESIDE:
        raise BadTensor(
            f"the body holds about {given} values, and {rows} rows, which is max_batch, have {most}",
            hint=f"send at most {rows} rows at a time",
        )


def array_of(tensor: Tensor, value: Any) -> npt.NDArray[Any]:
    """Nested lists → one array. Level by level, because numpy would read strings as numbers and null as NaN.

    Raises BadTensor.
    """
    level: list[Any] = [value]
    shape: list[int] = []
    while len(shape) < len(tensor.shape) and level and set(map(type, level)) == {list}:
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise _wrong(tensor, f"is ragged: at depth {len(shape) + 1} there are lists of {sorted(sizes)[:4]} values")
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    kinds = set(map(type, level))
    if list in kinds and len(kinds) > 1:
        raise _wrong(tensor, "mixes lists with single values")
    seen = _seen_shape(value) if list in kinds else tuple(shape)
    if wrong := misfit(tensor, seen):
        raise BadTensor(wrong, hint=_nest(tensor), loc=("inputs", tensor.name))
    return flat(tensor, level, kinds).reshape(shape)


def flat(tensor: Tensor, values: list[Any], kinds: set[type]) -> npt.NDArray[Any]:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise _wrong(tensor, "cannot be given as JSON")
    taken: dict[str, set[type]] = {"f": {float, int}, "i": {float, int}, "u": {float, int}, "b": {bool}, "O": {str}}
    if wrong := kinds - taken[dtype.kind]:
        names = sorted(_JSON_NAMES.get(kind, "something else") for kind in wrong)
        at = next(i for i, v in enumerate(values) if type(v) in wrong)
        raise _wrong(tensor, f"holds {' and '.join(names)} (value {at} of {len(values)})")
    if dtype.kind in "iu" and float in kinds:
        odd = next((v for v in values if type(v) is float and not v.is_integer()), None)
        if odd is not None:
            raise _wrong(tensor, f"holds {odd}, which is no integer")
        values = [int(v) for v in values]
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError:
        raise _wrong(tensor, f"holds numbers that {tensor.dtype} cannot") from None
    if dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            first = values[int(np.argmin(finite))]
            if first == first and abs(first) != float("inf"):
                raise _wrong(tensor, f"holds {first}, too large for {tensor.dtype}")
    return array


_JSON_NAMES: dict[type, str] = {
    str: "strings", bool: "booleans", int: "numbers", float: "numbers", type(None): "null", dict: "objects",
    list: "lists",
}  # fmt: skip


def _wrong(tensor: Tensor, what: str) -> BadTensor:
    detail = f"input {tensor.name!r} must be {expected(tensor)}, and {what}"
    return BadTensor(detail, hint=_nest(tensor), loc=("inputs", tensor.name))


def _nest(tensor: Tensor) -> str:
    if not tensor.shape:
        return "give a single value, not a list"
    return f"nest lists {len(tensor.shape)} deep" + (", the rows outermost" if tensor.batch_axis == 0 else "")


def _seen_shape(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list) and len(shape) < _DEEPEST:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)
