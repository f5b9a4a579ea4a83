"""Makes wrong files of right ones: bytes that are flipped, cut, doubled, spliced; trees of JSON with other leaves."""

from __future__ import annotations

import copy
import random
from typing import Any

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_LEAVES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, "", "x", "a.b", "..", "\0", "é" * 300,
    [], {}, [[]], [None], {"": 0}, ["x"] * 50, {"$node": "x"}, {"$tensor": "x"}, {"$dict": {}}, {"$slice": [0, 1, 2]},
)  # fmt: skip


def mutated(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to six changes, more often near the beginning, where headers are."""
    found = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if not found:
            break
        at = int(len(found) * rng.random() ** rng.choice((1, 1, 4)))
        what = rng.randrange(7)
        if what == 0:
            found[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            found[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif what == 2:
            del found[at : at + rng.choice((1, 4, 64, 4096))]
        elif what == 3:
            del found[at:]
        elif what == 4:
            piece = found[at : at + rng.choice((1, 8, 256))]
            found[at:at] = piece * rng.choice((1, 2, 50))
        elif what == 5:
            other = rng.choice(others)
            start = rng.randrange(max(1, len(other)))
            piece = bytearray(other[start : start + rng.choice((8, 128, 4096))])
            found[at : at + len(piece)] = piece
        else:
            found[at : at + 1] = rng.choice((b'"', b"[" * 300, b"{", b"-", b"1e999", b"\xff\xfe", b"NaN", b"\\u0000"))
    return bytes(found)


def mutated_tree(seed: Any, rng: random.Random) -> Any:
    """One to four places changed: another leaf, removed, doubled, exchanged with another, or nested deeply."""
    tree = copy.deepcopy(seed)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        what = rng.randrange(7)
        if what <= 1:
            holder[key] = copy.deepcopy(rng.choice(_LEAVES))
        elif what == 2:
            del holder[key]
        elif what == 3:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif what == 4 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder) * rng.choice((1, 3)))
        elif what == 5 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 1000, float(holder[key])))
        elif what == 6:
            for _ in range(rng.choice((1, 3, 200))):
                holder[key] = [holder[key]]
    return tree


def _places(tree: Any) -> Any:
    """Every (holder, key) in it."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
