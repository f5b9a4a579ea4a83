"""Inputs to try a network with: concrete shapes for its dynamic sizes, and random values that it can take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature, Tensor
from app.domain.tensors import DTYPES
from app.errors import Unprocessable

Array = npt.NDArray[Any]
Request = dict[str, Array]
# One run of the network that is the measure: raises whatever its library raises.
Ask = Callable[[Request], Request]

SIZES = (64, 32, 48, 224, 192, 128, 256, 576, 512, 96, 16, 8, 4, 2, 1, 3, 1024, 320)
HIGHEST = (1000, 100, 10, 2)  # token numbers are drawn below one of these
TRIES, BYTES = 3000, 256 * 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """How to make requests: input name → shape of one row (with a batch axis of 1), bound of integers, fixed value."""

    signature: Signature
    shapes: dict[str, tuple[int, ...]]
    below: int = HIGHEST[0]
    scalars: dict[str, int] = field(default_factory=dict)
    positive: frozenset[str] = frozenset()

    def draw(self, rng: np.random.Generator, rows: int = 1) -> Request:
        """Random inputs of `rows` rows."""
        return {t.name: self._one(t, rng, rows) for t in self.signature.inputs}

    def _one(self, tensor: Tensor, rng: np.random.Generator, rows: int) -> Array:
        shape, dtype = list(self.shapes[tensor.name]), DTYPES[tensor.dtype]
        if tensor.batch_axis is not None and tensor.shape[tensor.batch_axis] == -1:
            shape[tensor.batch_axis] *= rows
        if tensor.name in self.scalars:
            return np.full(shape, self.scalars[tensor.name], dtype)
        if tensor.name in self.positive:
            return rng.uniform(0.1, 2, shape).astype(dtype)
        if dtype.kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        if dtype.kind == "b" or "mask" in tensor.name.lower():
            # The first place of every row is never masked: a row of nothing has no answer.
            drawn = rng.integers(0, 2, shape)
            drawn[..., :1] = 1
            return np.asarray(drawn, dtype)
        if dtype.kind in "iu":
            return rng.integers(0, min(self.below, np.iinfo(dtype).max), shape).astype(dtype)
        return np.full(shape, "text", object)


def plan(
    signature: Signature,
    said: Mapping[str, Sequence[int]] | None,
    ask: Ask,
    *,
    symbols: Mapping[str, Sequence[str | None]] | None = None,
    constants: Mapping[str, Sequence[int]] | None = None,
    preferred: Mapping[str, Sequence[int]] | None = None,
    positive: Collection[str] = (),
    seed: int = 0,
) -> Plan:
    """Shapes and values that the network runs on: as `said`, else the first that do, found by trying.

    symbols: names of dynamic sizes; equal names get equal sizes. constants: what the graph compares an integer input
    with. preferred: shapes to try first. positive: inputs that make no sense below zero. Raises Unprocessable where
    none is found, or what was said does not fit.
    """
    check_shapes(signature, said)
    open_sizes = _open_sizes(signature, said or {}, symbols or {})
    integers = [t for t in signature.inputs if _is_scalar(t) and DTYPES[t.dtype].kind in "iu"]
    values = [tuple(dict.fromkeys((*(constants or {}).get(t.name, ()), 1, 0, 2))) for t in integers]
    candidates = [_candidates(symbol, preferred or {}, places) for symbol, places in open_sizes.items()]
    floats = {t.name for t in signature.inputs if DTYPES[t.dtype].kind == "f"}
    problem: Exception | None = None
    ran = False
    tries = itertools.product(*candidates, *values, HIGHEST if _has_numbers(signature, integers) else HIGHEST[:1])
    for n, (*chosen, below) in enumerate(tries):
        if n >= TRIES:
            break
        sizes = dict(zip(open_sizes, chosen, strict=False))
        scalars = dict(zip([t.name for t in integers], chosen[len(open_sizes) :], strict=True))
        found = Plan(signature, _shapes(signature, said or {}, open_sizes, sizes), below, scalars, frozenset(positive))
        if sum(prod(s) for s in found.shapes.values()) * 4 > BYTES:
            continue
        for one in (found, replace(found, positive=frozenset(floats))):  # logarithms and roots want positive numbers
            try:
                answer = ask(one.draw(np.random.default_rng(seed)))
            except Exception as error:  # that is what is being found out
                problem = problem or error
                break
            ran = True
            if all(np.isfinite(a).all() for a in answer.values() if a.dtype.kind == "f" and a.size):
                return one
    if ran:
        raise Unprocessable(
            "the model answers random inputs with NaN or infinity only, so that nothing can be compared",
            code="not_finite",
            hint="look at what it computes: a logarithm of a negative number, or a division by zero",
        )
    wanted = "; ".join(f"{t.name} {list(t.shape)}" for t in signature.inputs)
    raise Unprocessable(
        f"no shapes were found on which the model runs ({wanted})"
        + (f"; the first try failed with: {str(problem).splitlines()[0][:300]}" if problem and str(problem) else ""),
        code="shapes_needed",
        hint='say "shapes": {"input name": [1, 3, 48, 192]} in the job',
    )


def check_shapes(signature: Signature, said: Mapping[str, Sequence[int]] | None) -> None:
    """Raises Unprocessable where a shape that was said is not one of the signature's."""
    inputs = {t.name: t for t in signature.inputs}
    for name, shape in (said or {}).items():
        if name not in inputs:
            raise Unprocessable(
                f"`shapes` names the input {name!r}; the model has {', '.join(map(repr, inputs))}", code="bad_shapes"
            )
        wanted = inputs[name].shape
        fits = len(shape) == len(wanted) and all(
            w == s if w != -1 else s > 0 for w, s in zip(wanted, shape, strict=True)
        )
        if not fits:
            raise Unprocessable(
                f"`shapes` gives {name!r} as {list(shape)}; the model takes {list(wanted)}, where -1 is any size",
                code="bad_shapes",
            )


def _open_sizes(
    signature: Signature, said: Mapping[str, Sequence[int]], symbols: Mapping[str, Sequence[str | None]]
) -> dict[str, list[tuple[str, int]]]:
    """symbol → the (input, axis) that have its size; only sizes that nothing fixes."""
    found: dict[str, list[tuple[str, int]]] = {}
    for tensor in signature.inputs:
        names = list(symbols.get(tensor.name, ())) or [None] * len(tensor.shape)
        for axis, size in enumerate(tensor.shape):
            if size == -1 and tensor.name not in said and axis != tensor.batch_axis:
                symbol = names[axis] or f"{tensor.name}[{axis}]"
                found.setdefault(symbol, []).append((tensor.name, axis))
    return found


def _candidates(symbol: str, preferred: Mapping[str, Sequence[int]], places: list[tuple[str, int]]) -> tuple[int, ...]:
    first = [preferred[name][axis] for name, axis in places if name in preferred]
    first += [1] if "batch" in symbol.lower() else []
    return tuple(dict.fromkeys((*first, *SIZES)))


def _shapes(
    signature: Signature,
    said: Mapping[str, Sequence[int]],
    open_sizes: Mapping[str, list[tuple[str, int]]],
    sizes: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    found = {}
    chosen = {place: sizes[symbol] for symbol, places in open_sizes.items() for place in places}
    for tensor in signature.inputs:
        shape = [chosen.get((tensor.name, a), 1 if n == -1 else n) for a, n in enumerate(tensor.shape)]
        if tensor.name in said:
            shape = list(said[tensor.name])
            if signature.batched:
                shape[0] = 1
        found[tensor.name] = tuple(shape)
    return found


def _is_scalar(tensor: Tensor) -> bool:
    return tensor.shape in ((), (1,))


def _has_numbers(signature: Signature, scalars: Sequence[Tensor]) -> bool:
    return any(DTYPES[t.dtype].kind in "iu" and t not in scalars for t in signature.inputs)
