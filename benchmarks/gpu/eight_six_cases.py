"""What eight_six_prepare.py wrote, read again; a session that is asked; how far an answer is away. Python 3.10."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.gpu.session import Session

Arrays = dict[str, np.ndarray]


def networks(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "networks.json").read_text())
    return found


def cases(folder: Path, facts: Any) -> Iterator[tuple[Arrays, Arrays]]:
    """Inputs and what they must give; where batches are measured, also so many rows, repeated from the last."""
    with np.load(folder / f"{facts['name']}.npz") as stored:
        arrays = dict(stored)
    for number in range(facts["cases"]):
        x, y = (
            {key.split(".", 2)[2]: array for key, array in arrays.items() if key.startswith(f"{number}.{side}.")}
            for side in ("in", "out")
        )
        yield x, y
    for batch in facts["batches"]:
        yield repeated(x, batch), repeated(y, batch)


def repeated(arrays: Arrays, rows: int) -> Arrays:
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in arrays.items()}


def ask(session: Session, x: Arrays) -> Arrays:
    with session.filling({name: array.shape for name, array in x.items()}) as room:
        for name, array in x.items():
            room[name][...] = array
    return {name: array.copy() for name, array in session.run().items()}


def apart(found: Arrays, wanted: Arrays) -> float:
    """The largest relative error of its outputs; another shape or NaN is infinitely far away."""
    errors = [0.0]
    for name, right in wanted.items():
        array = found[name]
        if array.shape != right.shape or not np.isfinite(array.astype(np.float64)).all():
            return float("inf")
        if right.size:
            distance = np.linalg.norm((array.astype(np.float64) - right).ravel())
            errors.append(float(distance / max(np.linalg.norm(right.astype(np.float64).ravel()), 1e-30)))
    return max(errors)
