"""Runs an engine on zeros before anybody asks it: the first run of a batch size costs milliseconds."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Tensor, Version
from app.domain.tensors import DTYPES
from app.errors import Problem
from app.runtimes import Engine

log = logging.getLogger("enginesmith.serving")
_BUCKETS_S = 30.0  # no larger batch is tried once warming has taken this long
_BETWEEN_S = 3.0  # and no further size between the powers of two


def warm(engine: Engine, version: Version, max_batch: int, instances: int = 1) -> None:
    """Runs the powers of two and `max_batch`; then, where an engine finds the first run of a size dear and there is
    time, those between in steps of a quarter: the smallest first, which come most often. Raises what the engine does.

    Where dimensions beside the batch are dynamic it takes the shapes that the engine was measured with; without
    any it does nothing, because a size made up here may not fit the network.
    """
    shapes = _known_shapes(version)
    if shapes is None:
        return
    signature = version.signature
    fixed = all(-1 not in t.shape[1:] for t in signature.inputs) and signature.batched
    buckets = _buckets(max_batch) if signature.batched else [1]
    between = _between(buckets) if fixed and hasattr(engine, "met") else []
    began = time.monotonic()
    with ThreadPoolExecutor(instances, thread_name_prefix="warm") as threads:
        for number, rows in enumerate((*buckets, *between)):
            inputs = {t.name: _zeros(t, shapes[t.name], rows) for t in signature.inputs}
            try:
                _run_all(engine, inputs, threads, instances)
            except Problem:
                if fixed:
                    raise
                log.info("%s does not run on zeros, and is not warmed", version.ref)
                return
            took = time.monotonic() - began
            if took > _BUCKETS_S and number < len(buckets) - 1:
                log.warning("warming %s stopped at %d of %d rows: it took too long", version.ref, rows, max_batch)
                return
            if took > _BETWEEN_S and number >= len(buckets) - 1:
                return


def _run_all(engine: Engine, inputs: dict[str, npt.NDArray[Any]], threads: ThreadPoolExecutor, instances: int) -> None:
    """Every instance at the same time: one after the other, the same one would do them all."""
    if instances == 1:
        engine.infer(inputs)
        return
    together = threading.Barrier(instances)

    def run() -> None:
        together.wait()
        engine.infer(inputs)

    for run_ended in [threads.submit(run) for _ in range(instances)]:
        run_ended.result()


def _known_shapes(version: Version) -> dict[str, tuple[int, ...]] | None:
    given: dict[str, Any] = version.details.get("shapes") or {}
    found: dict[str, tuple[int, ...]] = {}
    for tensor in version.signature.inputs:
        measured = given.get(tensor.name)
        shape = tensor.shape if measured is None or len(measured) != len(tensor.shape) else tuple(measured)
        if any(n < 1 for axis, n in enumerate(shape) if axis != tensor.batch_axis):
            return None
        found[tensor.name] = shape
    return found


def _zeros(tensor: Tensor, shape: tuple[int, ...], rows: int) -> npt.NDArray[Any]:
    sized = [rows if axis == tensor.batch_axis and tensor.shape[axis] == -1 else n for axis, n in enumerate(shape)]
    dtype = DTYPES[tensor.dtype]
    return np.full(sized, "", dtype) if dtype.hasobject else np.zeros(sized, dtype)


def _buckets(max_batch: int) -> list[int]:
    """1, 2, 4 … and the largest."""
    return [*(1 << n for n in range((max_batch - 1).bit_length())), max_batch]


def _between(buckets: list[int]) -> list[int]:
    """3, 5, 6, 7, 10, 12, 14, 20 …: so that no size is more than a quarter below one that is known. Every size would
    be 64 where these are 20: measured on a tiny network, 30 MB where these are 6."""
    found = [low + n * low // 4 for low in buckets for n in (1, 2, 3)]
    return sorted({rows for rows in found if rows < buckets[-1]} - set(buckets))
