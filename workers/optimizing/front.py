"""What is chosen: the Pareto front on the validation split, and the order in which its members go to the test."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

SPREAD = 1.15  # two members of a sequence differ in gain by at least this factor
LONGEST = 5


@dataclass(frozen=True)
class Candidate:
    """quality: on the validation split. gain: how many times better than the plain fp32 engine in what counts."""

    name: str
    quality: float
    gain: float
    bytes: float = 0.0


def undominated(figures: Mapping[str, Sequence[float]]) -> list[str]:
    """Those that no other one equals or beats in every figure and beats in one; more is better in each."""

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)

    return [name for name, own in figures.items() if not any(beats(other, own) for other in figures.values())]


def pareto(candidates: Collection[Candidate]) -> list[Candidate]:
    """Those that no other one beats in quality and gain, from the most accurate to the one that gains most."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.gain, -c.quality, c.name)):
        if not front or candidate.quality > front[-1].quality:
            front.append(candidate)
    return front[::-1]


def sequence(front: Sequence[Candidate], least: float) -> list[Candidate]:
    """Whose verdicts are asked for, in this order, which is fixed before the test split is looked at: members of the
    front that gain something and hold `least` on the validation split, the most accurate first.

    Verdicts are heeded up to the first that is not `accepted`: so the level of each is that of the whole (a fixed
    sequence of tests: Westfall and Krishen, Journal of Statistical Planning and Inference 99 (2001) 25-40).
    """
    able = [c for c in front if c.quality >= least and c.gain > 1]
    found: list[Candidate] = []
    for candidate in reversed(able):  # the one that gains most first, so that it is in whatever is left out
        if not found or found[-1].gain >= SPREAD * candidate.gain:
            found.append(candidate)
    return found[:LONGEST][::-1]


def proven(order: Sequence[str], verdicts: Mapping[str, str]) -> list[str]:
    """Those accepted before the first that was not."""
    return list(takewhile(lambda name: verdicts.get(name) == "accepted", order))
