"""The tagged values of the graph form: JSON → what torch.fx takes as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from enginesmith import allowed

# The deepest nesting of a graph as JSON: nodes → node → args → tagged values.
MAX_DEPTH = 40
_TAGS = frozenset(
    {"$node", "$tuple", "$slice", "$dict", "$dtype", "$memory_format", "$device", "$float", "$ellipsis"},
)


def depth_of(value: Any, limit: int = 10_000) -> int:
    """How deep lists and objects are nested, found without recursion; counts no further than `limit`."""
    level, deep = [value], 0
    while level and deep < limit:
        level = [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]
        deep += 1
    return deep


def references(value: Any) -> list[str]:
    """The names of the nodes that a value refers to. Raises ValueError for a value that is not of the graph form."""
    if isinstance(value, list):
        return [r for v in value for r in references(v)]
    if not isinstance(value, dict):
        return []
    if set(value) <= _TAGS and len(value) == 1:
        [(tag, inner)] = value.items()
        if tag == "$node":
            if not isinstance(inner, str):
                raise ValueError("a $node must be the name of a node")
            return [inner]
        if tag == "$dict":
            if not isinstance(inner, dict):
                raise ValueError("a $dict must be an object")
            return [r for v in inner.values() for r in references(v)]
        return references(inner)
    if any(str(k).startswith("$") for k in value):
        raise ValueError(f"a value is tagged {', '.join(sorted(map(str, value)))[:100]}; the tags are {_named(_TAGS)}")
    # A keyword dictionary: only at the top of a node's arguments.
    return [r for v in value.values() for r in references(v)]


def decode(value: Any, nodes: Mapping[str, Any]) -> Any:
    """The Python value; nodes: name → what stands for it. Raises ValueError."""
    if value is None or isinstance(value, bool | int | float | str):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
            raise ValueError(f"the number {str(value)[:40]} does not fit into 64 bits")
        return value
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("an object in the arguments must be one tagged value")
    [(tag, inner)] = value.items()
    if tag == "$node":
        if not isinstance(inner, str) or inner not in nodes:
            raise ValueError(f"no earlier node is called {str(inner)[:80]!r}")
        return nodes[inner]
    if tag == "$tuple" and isinstance(inner, list):
        return tuple(decode(v, nodes) for v in inner)
    if tag == "$slice" and isinstance(inner, list) and len(inner) == 3:
        return slice(*(decode(v, nodes) for v in inner))
    if tag == "$dict" and isinstance(inner, dict):
        return {_key(k): decode(v, nodes) for k, v in inner.items()}
    if tag == "$ellipsis":
        return ...
    if tag == "$float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if tag == "$device" and inner in ("cpu", "cuda"):
        return torch.device(inner)
    for known, names in (("$dtype", allowed.dtypes()), ("$memory_format", allowed.memory_formats())):
        if tag == known and isinstance(inner, str) and inner in names:
            return names[inner]
    raise ValueError(f"{tag}: {str(inner)[:80]!r} is no value; the tags are {_named(_TAGS)}")


def _key(key: str) -> str:
    if not isinstance(key, str) or not allowed.IDENTIFIER.match(key):
        raise ValueError(f"the key {str(key)[:80]!r} is no identifier")
    return key


def _named(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
