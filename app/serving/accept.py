"""Headers by which a client says what it prefers: `Accept`, `Accept-Encoding`."""

from __future__ import annotations

import re

_WEIGHT = re.compile(r"[0-9](?:\.[0-9]*)?|\.[0-9]+")


def weighted(header: str) -> list[tuple[str, float]]:
    """What is named, in lower case, with its weight: 1 where none is said, and 0 where that is no number."""
    found = []
    for part in header.lower().split(","):
        name, *parameters = (p.strip() for p in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = (p.strip() for p in parameter.partition("="))
            if key == "q":
                weight = float(value) if _WEIGHT.fullmatch(value) else 0.0
                break
        found.append((name, weight))
    return found
