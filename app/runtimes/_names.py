"""Which tensor of an engine is which of its signature."""

from __future__ import annotations

from app.errors import Internal


def pairs(ours: list[str], theirs: list[str], what: str) -> list[tuple[str, str]]:
    """(name in the signature, name in the file): the same where it can be, else by order. Raises Internal."""
    if set(ours) <= set(theirs):
        return [(name, name) for name in ours]
    if len(ours) != len(theirs):
        raise Internal(
            f"the engine has {len(theirs)} {what}s and its signature names {len(ours)}: {ours}", code="engine_broken"
        )
    return list(zip(ours, theirs, strict=True))
