"""Optimization profiles: the sizes that a plan is built for, from what the network leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.errors import Unprocessable

Shape = tuple[int, ...]
_USUAL = 8  # the batch that a plan of one profile is fastest at


@dataclass(frozen=True)
class Bounds:
    """Of one input in one profile."""

    smallest: Shape
    best: Shape
    largest: Shape


def profiles(
    inputs: Mapping[str, Shape], max_batch: int, shapes: Mapping[str, Shape], buckets: Sequence[int] = ()
) -> list[dict[str, Bounds]]:
    """One profile for 1 … max_batch rows, or one for each bucket: the largest number of rows that it takes.

    inputs: name → shape with -1 where it varies; the first -1 is the batch where it is the first dimension. shapes:
    what the other open sizes are for, and at most. Raises Unprocessable where such a size is open and not said.
    """
    ends = sorted({min(b, max_batch) for b in buckets if b > 0} | {max_batch})
    starts = [1, *(end + 1 for end in ends[:-1])]
    made = []
    for first, last in zip(starts, ends, strict=True):
        rows = (first, last if buckets else min(_USUAL, last), last)
        made.append({n: _bounds(n, shape, shapes, rows, last == ends[-1]) for n, shape in inputs.items()})
    return made


def _bounds(name: str, shape: Shape, shapes: Mapping[str, Shape], rows: tuple[int, int, int], is_last: bool) -> Bounds:
    """rows: fewest, usual, most. is_last: no other profile takes more."""
    said = shapes.get(name)
    if any(n < 0 for n in shape[1:]) and (said is None or len(said) != len(shape)):
        raise Unprocessable(
            f"input {name} is {list(shape)}: how large its open sizes get has to be said",
            code="open_shape",
            hint=f'say it: "shapes": {{"{name}": [{", ".join("1" if n < 0 else str(n) for n in shape)}]}}',
        )

    first, usual, most = rows
    if is_last and said and shape[:1] == (-1,):
        most = max(most, said[0])  # an axis 0 that is no batch is an open size

    def sized(rows: int, whole: bool) -> Shape:
        return tuple(
            n if n >= 0 else rows if axis == 0 else said[axis] if whole and said else 1 for axis, n in enumerate(shape)
        )

    return Bounds(sized(first, False), sized(usual, True), sized(most, True))
