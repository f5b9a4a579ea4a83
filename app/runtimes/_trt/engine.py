"""A plan behind the interface of an engine: signatures, batches, and a session for each run that may go on at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import check
from app.errors import Internal, Unavailable
from app.gpu.inference import Plan
from app.gpu.session import Session
from app.runtimes import Arrays, LoadOptions, Slot
from app.runtimes._names import pairs
from app.runtimes._slots import padded
from app.runtimes._trt import layers


class PlanSlot:
    """One session. Rows of requests are copied once, into its page-locked memory; an answer is valid until the next
    `fill`."""

    fresh = False

    def __init__(self, engine: PlanEngine, session: Session, pads: bool = False) -> None:
        self.pads = pads
        self._engine = engine
        self._session = session
        self._rows = self._size = 0

    def fill(self, parts: Sequence[Arrays], rows: int) -> None:
        engine = self._engine
        size = padded(rows, engine.met) if self.pads else rows
        self._rows, self._size = rows, size
        first, skip = parts[0], 1 if engine.signature.batched else 0
        shapes = {
            theirs: (size, *first[ours].shape[1:]) if skip else first[ours].shape for ours, theirs in engine.inputs
        }
        with self._session.filling(shapes) as room:
            for ours, theirs in engine.inputs:
                whole = room[theirs]
                if size > rows:
                    whole[rows:] = 0
                    whole = whole[:rows]
                if len(parts) == 1:
                    np.copyto(whole, first[ours])
                else:
                    np.concatenate([part[ours] for part in parts], out=whole)

    def run(self) -> dict[str, npt.NDArray[Any]]:
        engine = self._engine
        found = self._session.run()
        rows, size = self._rows, self._size
        if engine.signature.batched:
            engine.met.add(size)
        outputs = {}
        for ours, theirs in engine.outputs:
            array = found[theirs]
            # Whatever has another number of rows is wrong, and told by who knows how many were given.
            outputs[ours] = array[:rows] if size > rows and array.shape[:1] == (size,) else array
        return outputs

    @property
    def on_gpu(self) -> tuple[float, float, float, bool] | None:
        """Seconds that the last run took to copy in, compute and copy out, as events on the GPU measured them, and
        whether it was a CUDA graph."""
        of = self._session.times
        return None if of is None else (of.copy_in_ms / 1e3, of.compute_ms / 1e3, of.copy_out_ms / 1e3, of.graph)


class PlanEngine:
    """A slot per run that may go on at once; `infer` borrows one that nobody has taken."""

    steady = False

    def __init__(
        self, plan: Plan, signature: Signature, options: LoadOptions, told: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """told: its layers, as they were written down when it was built."""
        self.signature = signature
        self._told = told
        self.plan = plan
        self.met: set[int] = set()
        self.inputs = pairs([t.name for t in signature.inputs], [p.name for p in plan.inputs], "input")
        self.outputs = pairs([t.name for t in signature.outputs], [p.name for p in plan.outputs], "output")
        self._check_dtypes()
        self._fixed = signature.batched and all(-1 not in t.shape[1:] for t in signature.inputs)
        self._closed = False
        self._turns = threading.Semaphore(max(1, options.instances))
        # All at once: memory that does not suffice is known before anything is served.
        self._free: deque[PlanSlot] = deque(PlanSlot(self, plan.session()) for _ in range(max(1, options.instances)))

    def _check_dtypes(self) -> None:
        ports = {p.name: p for p in (*self.plan.inputs, *self.plan.outputs)}
        known = {t.name: t.dtype for t in (*self.signature.inputs, *self.signature.outputs)}
        for ours, theirs in (*self.inputs, *self.outputs):
            told = "float32" if known[ours] == "bfloat16" else known[ours]
            if ports[theirs].dtype.name != told:
                raise Internal(
                    f"the plan has {theirs} as {ports[theirs].dtype.name}, the signature as {told}",
                    code="engine_broken",
                )

    def slot(self) -> Slot:
        """One that `infer` has warmed, if there is one. Raises Unavailable."""
        slot = self._take()
        slot.pads = self._fixed
        return slot

    def _take(self) -> PlanSlot:
        if self._closed:
            raise Unavailable("the engine is closed")
        try:
            return self._free.pop()
        except IndexError:
            return PlanSlot(self, self.plan.session())

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        rows = check(self.signature, inputs)
        with self._turns:
            slot = self._take()
            try:
                slot.fill([inputs], rows)
                return {name: array.copy() for name, array in slot.run().items()}
            finally:
                if not self._closed:
                    self._free.append(slot)

    def executed(self) -> dict[str, str] | None:
        """Name of every convolution and matrix product → the precision it is computed in, as in `int8`, `fp16`. None
        where TensorRT did not tell when the plan was built."""
        return layers.executed(self._told)

    @property
    def gpu_bytes(self) -> int:
        """What it holds on the GPU, as far as that is told: weights, activations, inputs and outputs."""
        return self.plan.device_bytes

    def close(self) -> None:
        self._closed = True
        self.plan.close()
        self._free.clear()
