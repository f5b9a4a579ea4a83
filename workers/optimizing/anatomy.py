"""What became of the winner's layers, and how it and the fine-tuned baseline were trained, from their trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.records import Version

Report = Mapping[str, Any]
# Of what the links say of a layer. Others are about the search for it.
_OF_A_LAYER = ("sparsity_before", "sparsity_after", "groups", "rank", "values", "precision")


def layers(links: Sequence[Report], version: Version) -> dict[str, dict[str, Any]]:
    """By layer: its channels before and after, groups, rank, the precision that it is computed in, and the share of its
    weights that is zero, as far as each was touched or is known. links: reports of the chain, in their order."""
    found: dict[str, dict[str, Any]] = {name: {} for name in version.metrics.layer_sparsity}
    for link in links:
        for name, channels in _records(link.get("channels")):
            found.setdefault(name, {})["channels"] = channels
        if link.get("kind") == "convert":  # it counts the nodes of a graph, which have names of their own
            continue
        for name, row in _records(link.get("layers")):
            if kept := {field: row[field] for field in _OF_A_LAYER if row.get(field) is not None}:
                found.setdefault(name, {}).update(kept)
    for name, share in version.metrics.layer_sparsity.items():
        found[name].setdefault("sparsity_after", share)
    precision = version.details.get("precision")
    if precision and precision != "int8":
        for row in found.values():
            row.setdefault("precision", precision)
    return found


def training(links: Sequence[Report]) -> list[dict[str, Any]]:
    """The rows of all trainings in a chain, one after the other; several kinds are told apart by `phase`."""
    trained = [link for link in links if link.get("history")]
    kinds = {link.get("kind") for link in trained}
    return [
        {"phase": link.get("kind"), **row} if len(kinds) > 1 else dict(row)
        for link in trained
        for row in link["history"]
    ]


def _records(given: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(given, Mapping):
        return []
    return [(str(name), row) for name, row in given.items() if isinstance(row, Mapping)]
