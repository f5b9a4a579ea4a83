"""Which layers of a quantized network stay in higher precision: those that hurt most, as few as the bound allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.nn.quality import Answers

ROUNDS = 10


@dataclass(frozen=True)
class Try:
    """A quantized network. left: layers in higher precision; found: its answers to the validation split; drop: how
    much less accurate they are than the float network's."""

    model: Any
    left: tuple[str, ...]
    found: Answers
    drop: float


def leave(
    ranked: Sequence[str], bound: float, attempt: Callable[[tuple[str, ...]], Try], first: Try, rounds: int = ROUNDS
) -> list[Try]:
    """Leaves the first 1, 2, 4, … layers of `ranked` in higher precision until the drop is within the bound, then seeks
    the fewest that do. At least one layer stays int8, and no more than `rounds` networks are tried. The first try is
    `first`."""
    tries = [first]
    failed, met, count = 0, 0, 1

    def meets(count: int) -> bool:
        tries.append(attempt(tuple(ranked[:count])))
        return tries[-1].drop <= bound

    while not met and len(tries) <= rounds and (count := min(count, len(ranked) - 1)) > failed:
        if meets(count):
            met = count
        else:
            failed, count = count, 2 * count
    while met - failed > 1 and len(tries) <= rounds:
        middle = (met + failed) // 2
        if meets(middle):
            met = middle
        else:
            failed = middle
    return tries


def best(tries: Sequence[Try], bound: float) -> Try:
    """The one with the fewest layers left of those within the bound; where none is, the one that drops least."""
    within = [t for t in tries if t.drop <= bound]
    if within:
        return min(within, key=lambda t: (len(t.left), t.drop))
    return min(tries, key=lambda t: (t.drop, len(t.left)))
