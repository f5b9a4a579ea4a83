"""One execution context of a plan: filled, run and read by one thread at a time. See inference.py."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.errors import DeviceLost, EngineLost, Internal, Problem, Unavailable
from app.gpu.libcuda import CaptureFailed, Failed
from app.gpu.memory import Array, Memory, Shape, allocator
from app.gpu.ports import Port, Times

if TYPE_CHECKING:
    from app.gpu.inference import Plan

Key = tuple[Shape, ...]
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the legacy default stream, which others may use, does not hold it up
_SPIN_MS = 0.5  # a run that is longer is waited for asleep: 20 µs of waking up are nothing beside it
_GRAPHS_MOST = 128
_MET_MOST = 4096
_REFUSALS_MOST = 3  # recordings that fail before none is tried any more: what spoils one may pass


class Session:
    """One execution context with its stream, its page-locked memory, and the CUDA graphs that were recorded for it."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._device, self._cuda = plan, plan.device, plan.device.cuda
        self._turn = threading.Lock()  # held by whoever touches memory that `close` gives back
        self._closed = False
        self._ready = False
        self._profile = 0
        self._key: Key = ()
        self._shapes: dict[str, Shape] = {}  # what the execution context knows,
        self._addresses: dict[str, int] = {}  # and is not told again
        self._memories: dict[str, Memory] = {}
        self._graphs: dict[Key, int] = {}
        self._met: set[Key] = set()
        self.uncapturable: str | None = None  # why no run of this session becomes a CUDA graph
        self.times: Times | None = None
        self._refusals = 0
        self._slow = False
        self._context: Any = None
        self._stream: Any = None
        self._aside: list[Any] = []  # streams on which TensorRT runs layers beside one another
        self._events: list[Any] = []
        self._asleep: Any = None
        self._allocators: dict[str, Any] = {}
        try:
            with self._guarded():
                self._open()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            self._free()
            raise

    def _open(self) -> None:
        plan, engine = self._plan, self._plan.engine
        if engine is None:
            raise Unavailable("the engine is closed")
        self._context = engine.create_execution_context()
        if self._context is None:
            raise _failed(f"no execution context could be made: {plan.messages.said()}")
        self._stream = self._cuda.Stream(_NON_BLOCKING)
        if self._context.active_optimization_profile != 0:  # of TensorRT 8, any but the first has none yet
            self._choose(0)
        # Those that TensorRT makes itself may be of the kind that the legacy stream holds up: no recording survives it.
        self._aside = [self._cuda.Stream(_NON_BLOCKING) for _ in range(getattr(engine, "num_aux_streams", 0))]
        if self._aside:
            self._context.set_aux_streams([stream.handle for stream in self._aside])
        self._events = [self._cuda.Event() for _ in range(4)]
        self._asleep = self._cuda.Event(self._cuda.event_flags.BLOCKING_SYNC)
        self._allocate_outputs()
        if any(port.on_host for port in (*plan.inputs, *plan.outputs)):
            self.uncapturable = "an input or output of the network is read by the host"
        elif self._allocators:
            self.uncapturable = "the shape of an output depends on values"

    @contextmanager
    def filling(self, shapes: Mapping[str, Shape]) -> Iterator[dict[str, Array]]:
        """Memory for these inputs, written to before `run`. shapes: of every one. Raises BadTensor, Unavailable."""
        with self._used():
            self._ready = False
            profile = self._plan.profile_for(shapes)
            with self._guarded():
                if profile != self._profile:
                    self._choose(profile)
                room = {
                    port.name: self._memory(port).array(tuple(shapes[port.name]), port.dtype)
                    for port in self._plan.inputs
                }
            self._key = tuple(tuple(shapes[port.name]) for port in self._plan.inputs)
            yield room
            self._ready = True

    def run(self) -> dict[str, Array]:
        """One run over what was put into `filling`. Raises Unavailable where memory ran out, EngineLost where the GPU
        failed (DeviceLost: for good), Internal with TensorRT's own words."""
        with self._used():
            if not self._ready:
                raise Internal("nothing was put into the inputs", code="engine_failed")
            with self._guarded():
                return self._run()

    @property
    def device_bytes(self) -> int:
        """Of its inputs and outputs."""
        return sum(memory.nbytes for memory in list(self._memories.values()))

    def _run(self) -> dict[str, Array]:
        stream, shapes = self._stream, dict(zip((p.name for p in self._plan.inputs), self._key, strict=True))
        self._give(shapes)
        outputs = {port.name: self._output(port) for port in self._plan.outputs if port.name not in self._allocators}
        began, copied, computed, ended = self._events
        began.record(stream)
        for port in self._plan.inputs:
            if not port.on_host:
                self._memories[port.name].to_device(shapes[port.name], port.dtype, stream)
        copied.record(stream)
        graph = self._execute()
        computed.record(stream)
        for name, array in outputs.items():
            self._memories[name].to_host(array, stream)
        ended.record(stream)
        self._wait(ended)
        self.times = Times(copied.time_since(began), computed.time_since(copied), ended.time_since(computed), graph)
        self._slow = ended.time_since(began) > _SPIN_MS
        if not graph:
            self._record()
        outputs |= {name: asked.fetch(stream) for name, asked in self._allocators.items()}
        return {port.name: outputs[port.name] for port in self._plan.outputs}

    def _wait(self, ended: Any) -> None:
        """Without the GIL. Awake for a run that is brief, asleep for a long one: a core is worth more then."""
        if self._slow:
            self._asleep.record(self._stream)
            self._asleep.synchronize()
        ended.synchronize()

    def _choose(self, profile: int) -> None:
        try:  # it raises where other calls answer False
            self._context.set_optimization_profile_async(profile, self._stream.handle)
        except RuntimeError as error:
            raise _failed(f"the profile cannot be set: {self._plan.messages.said() or _text(error)}") from error
        self._profile, self._shapes = profile, {}

    def _give(self, shapes: Mapping[str, Shape]) -> None:
        """Shapes and addresses of inputs; what the context knows already is not told again."""
        context = self._context
        for port in self._plan.inputs:
            memory = self._memories[port.name]
            address = memory.host_address if port.on_host else memory.device_address
            if self._shapes.get(port.name) != shapes[port.name]:
                if not context.set_input_shape(port.name, shapes[port.name]):
                    raise _failed(self._plan.messages.said())
                self._shapes[port.name] = shapes[port.name]
            self._address(port.name, address)

    def _address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise _failed(f"the memory of {name} is refused: {self._plan.messages.said()}")
            self._addresses[name] = address

    def _output(self, port: Port) -> Array:
        shape = tuple(self._context.get_tensor_shape(port.name))
        if any(n < 0 for n in shape):
            raise _failed(f"the shape of {port.name} is not known: {self._plan.messages.said()}")
        memory = self._memory(port)
        array = memory.array(shape, port.dtype)
        self._address(port.name, memory.host_address if port.on_host else memory.device_address)
        return array

    def _execute(self) -> bool:
        """Enqueues the network, as a graph where there is one for these shapes."""
        graph = self._graphs.get(self._key)
        if graph is None:
            self._enqueue()
            return False
        self._device.libcuda.launch(graph, self._stream.handle)
        return True

    def _record(self) -> None:
        """After a run without one: shapes that will come again get a graph. Where only the number of rows varies that
        is at once, so that warming up records them all; else when they come for the second time."""
        key = self._key
        wanted = self.uncapturable is None and (self._plan.only_rows_vary or key in self._met)
        if len(self._met) < _MET_MOST:
            self._met.add(key)
        if not wanted or len(self._graphs) >= _GRAPHS_MOST:
            return
        # TensorRT for RTX alone can tell beforehand.
        told = getattr(self._context, "is_stream_capturable", None)
        if told is not None and not told(self._stream.handle):
            self.uncapturable = "TensorRT says that it cannot be recorded"
            return
        try:
            self._graphs[key] = self._device.libcuda.capture(self._stream.handle, self._enqueue)
        except CaptureFailed as error:
            self._plan.messages.said()
            self._refusals += 1
            if self._refusals >= _REFUSALS_MOST:
                self.uncapturable = f"recording failed: {error}"

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise _failed(self._plan.messages.said())

    def _memory(self, port: Port) -> Memory:
        """What holds a tensor; where it grows, the graphs that know its address are void."""
        if port.name not in self._memories:
            self._memories[port.name] = Memory(self._cuda, self._device.libcuda, port.on_host, self._void)
        return self._memories[port.name]

    def _void(self) -> None:
        if self._graphs:
            self._stream.synchronize()
        for graph in self._graphs.values():
            self._device.libcuda.destroy(graph)
        self._graphs.clear()

    def _allocate_outputs(self) -> None:
        """Outputs whose shapes only a run tells get what TensorRT asks for their memory."""
        if any(port.on_host for port in self._plan.inputs):
            return
        for name, (_, largest) in self._plan.profiles[0].items():
            # TensorRT 8.6 may have one context for each profile, unless a plan was built to share them.
            if not self._context.set_input_shape(name, largest):
                raise _failed(f"no execution context could be made: {self._plan.messages.said()}")
        for port in self._plan.outputs:
            if any(n < 0 for n in self._context.get_tensor_shape(port.name)):
                self._allocators[port.name] = asked = allocator(self._plan.trt, self._cuda, port.dtype)
                if not self._context.set_output_allocator(port.name, asked):
                    raise _failed(f"no output allocator for {port.name}: {self._plan.messages.said()}")

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            with self._turn:
                if self._closed:
                    raise Unavailable("the engine is closed")
                yield
        finally:
            self._free_if_closed()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The context current, and CUDA's errors as ours."""
        cuda = self._cuda
        try:
            with self._device.current():
                yield
        except (cuda.Error, Failed) as error:
            if isinstance(error, cuda.MemoryError) or (isinstance(error, Failed) and error.is_out_of_memory):
                raise _no_memory(error) from error
            lost = DeviceLost if self._device.is_lost() else EngineLost
            raise lost(f"the GPU failed: {_text(error)}") from error
        except Internal as error:  # TensorRT says of a GPU that failed what it says of all else: False
            if self._device.is_lost():
                raise DeviceLost(error.detail) from error
            raise

    def close(self) -> None:
        """Twice is no harm. A run that is on its way ends first: it gives the memory back itself."""
        self._closed = True
        self._free_if_closed()

    def _free_if_closed(self) -> None:
        """Asked by `close` and after every run: whoever of them comes last finds it closed, and its turn free."""
        if self._closed and self._turn.acquire(blocking=False):
            try:
                self._free()
            finally:
                self._turn.release()

    def _free(self) -> None:
        if self._context is None:
            return
        self._plan.forget(self)
        try:
            with self._guarded():
                self._void()
                for memory in self._memories.values():
                    memory.free()
                for asked in self._allocators.values():
                    asked.free()
                self._memories.clear()
                self._context = self._stream = self._asleep = None
                self._events.clear()
                self._aside.clear()
        except Problem:  # a GPU that failed: its memory is gone with its context
            self._context = None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _no_memory(error: Exception) -> Unavailable:
    return Unavailable(
        f"the GPU has no memory left for this batch: {_text(error)}",
        code="gpu_out_of_memory",
        hint="send fewer rows, take `instances` or `max_batch` down, or have fewer engines on this GPU",
    )


def _failed(text: str) -> Internal:
    return Internal(f"TensorRT failed: {text}", code="engine_failed")
