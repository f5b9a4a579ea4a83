"""The inference half of TensorRT: deserializes plans and runs them, on TensorRT 8.6, 10 and 11 and TensorRT for RTX.

It stands alone: Python 3.10 with numpy, pycuda and TensorRT is enough, beside the vocabulary of errors. Both libraries
are handed in (`trt`, and `cuda`, which is pycuda.driver), so that tests can put something else in their place.

    device = Device(cuda)                   the primary context, shared with whatever else uses it in this process
    plan = Plan(trt, device, blob)          a deserialized engine
    session = plan.session()                a context, a stream and memory of its own; for one thread at a time
    with session.filling(shapes) as room:   page-locked memory, which rows are written into directly
        room["x"][...] = x
    outputs = session.run()                 page-locked memory too: valid until the session is filled again or closed
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from app.errors import BadTensor, Internal, Unavailable
from app.gpu.device import Device
from app.gpu.memory import Shape
from app.gpu.messages import listener
from app.gpu.ports import Port
from app.gpu.session import Session


class Plan:
    """A deserialized engine. Raises Internal with TensorRT's own words.

    inputs, outputs: in the order of the network. profiles: of each, input → its smallest and its largest shape.
    only_rows_vary: whether nothing but the first dimension of inputs is open.
    """

    def __init__(self, trt: Any, device: Device, blob: bytes) -> None:
        self.trt, self.device = trt, device
        self.messages = listener(trt)
        self._sessions: set[Session] = set()
        self._bytes = len(blob)
        self._runtime: Any = None
        self.engine: Any = None
        with device.current():
            try:
                self._open(blob)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)
                self.close()
                raise

    def _open(self, blob: bytes) -> None:
        trt = self.trt
        if not trt.init_libnvinfer_plugins(self.messages, ""):  # plans may name its plugins
            raise Internal(f"TensorRT's plugins do not load: {self.messages.said()}", code="plugins_broken")
        self._runtime = trt.Runtime(self.messages)
        engine = self.engine = self._runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise Internal(
                f"the plan does not load: {self.messages.said()}",
                code="engine_broken",
                hint="a plan is tied to the version of TensorRT and the GPU that it was built for",
            )
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        ports = {name: self._port(name) for name in names}
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = [ports[name] for name in names if is_input[name]]
        self.outputs = [ports[name] for name in names if not is_input[name]]
        self.only_rows_vary = all(n >= 0 for port in self.inputs for n in port.shape[1:])
        self.profiles = [
            {p.name: self._bounds(p, n) for p in self.inputs if not p.on_host}
            for n in range(engine.num_optimization_profiles)
        ]

    def _port(self, name: str) -> Port:
        engine, trt = self.engine, self.trt
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        try:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        except TypeError as error:
            raise Internal(f"{name} has a type that numpy lacks: {error}", code="engine_broken") from None
        return Port(name, dtype, tuple(engine.get_tensor_shape(name)), on_host)

    def _bounds(self, port: Port, profile: int) -> tuple[Shape, Shape]:
        smallest, _, largest = self.engine.get_tensor_profile_shape(port.name, profile)
        return tuple(smallest), tuple(largest)

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that these shapes lie in. Raises BadTensor that names what does not."""
        for number, bounds in enumerate(self.profiles):
            if all(_within(shapes[name], *between) for name, between in bounds.items()):
                return number
        told = "; ".join(
            f"{name} {list(shapes[name])} is not within "
            + " or ".join(f"{list(p[name][0])} … {list(p[name][1])}" for p in self.profiles)
            for name in (self.profiles[0] if self.profiles else ())
            if not any(_within(shapes[name], *p[name]) for p in self.profiles)
        )
        raise BadTensor(
            f"the engine was not built for these shapes: {told or 'no profile takes them together'}",
            hint="send sizes within these bounds, or convert again with a larger `max_batch` or other `shapes`",
        )

    def session(self) -> Session:
        """Raises Unavailable where the GPU has no memory left for one, or the plan is closed; EngineLost."""
        made = Session(self)
        self._sessions.add(made)
        if self.engine is None:  # closed meanwhile, by one who did not see it
            made.close()
            raise Unavailable("the engine is closed")
        return made

    def forget(self, session: Session) -> None:
        self._sessions.discard(session)

    @property
    def device_bytes(self) -> int:
        """What is held on the GPU, as far as that is told: the plan, which is mostly weights, and each session's
        activations, inputs and outputs."""
        engine = self.engine
        if engine is None:
            return 0
        found = getattr(engine, "device_memory_size_v2", None)
        activations = int(engine.device_memory_size if found is None else found)
        return self._bytes + sum(activations + session.device_bytes for session in list(self._sessions))

    def close(self) -> None:
        """Gives back all memory, but for what a run that is on its way still uses: that goes when the run ends. Not
        by a garbage collector: it may run while TensorRT logs, and then wait for ever for a lock that is taken."""
        for session in list(self._sessions):
            session.close()
        self.engine = self._runtime = None


def _within(shape: Shape, smallest: Shape, largest: Shape) -> bool:
    return len(shape) == len(smallest) and all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True))
