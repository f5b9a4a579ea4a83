"""A GPU that is none: the few calls of pycuda and TensorRT that the inference half makes, over numpy.

Streams put off what they are asked until somebody waits for them, freed memory is poisoned, and every call asks for
a current context: a copy that is not waited for, an address that is stale and a free in the wrong thread all show.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

FREED = 0xAB


class CudaError(Exception):
    pass


class OutOfMemory(CudaError):
    pass


class Heap:
    """Bytes by address. What is freed is overwritten, and using it is an error."""

    def __init__(self, start: int) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self._next = start

    def allocate(self, size: int) -> int:
        address, self._next = self._next, self._next + size + 256
        self.blocks[address] = np.full(size, 0xCD, np.uint8)
        return address

    def at(self, address: int, size: int) -> np.ndarray:
        block = self.blocks.get(address)
        assert block is not None, f"memory at {address:#x} was freed, or never was"
        assert block.nbytes >= size, f"{size} bytes at {address:#x}, which has {block.nbytes}"
        return block[:size]

    def free(self, address: int) -> None:
        self.blocks.pop(address)[:] = FREED

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())


class Cuda:
    """What stands for `pycuda.driver`. limit: bytes that the GPU has. fail: an error that the next launch ends in.
    broken: the context is of no use any more, as after an illegal address."""

    Error = CudaError
    MemoryError = OutOfMemory

    class event_flags:  # noqa: N801
        BLOCKING_SYNC = 1

    def __init__(self, limit: int = 1 << 30) -> None:
        self.heap = Heap(0x1000)
        self.pinned = Heap(1 << 40)
        self.limit = limit
        self.fail: Exception | None = None
        self.broken = False
        self.slept = 0
        self._here = threading.local()
        cuda = self

        class Context:
            def push(self) -> None:
                cuda._here.depth = getattr(cuda._here, "depth", 0) + 1

            @staticmethod
            def pop() -> None:
                cuda.current()
                cuda._here.depth -= 1

        class Device:
            def __init__(self, ordinal: int) -> None:
                assert ordinal == 0

            def retain_primary_context(self) -> Context:
                return Context()

        class Allocation:
            def __init__(self, address: int) -> None:
                self.address = address

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                cuda.current()
                cuda.heap.free(self.address)

        class Stream:
            def __init__(self, flags: int = 0) -> None:
                cuda.current()
                self.handle = id(self)
                self.queue: list[Callable[[], None]] = []
                self.recording: list[Callable[[], None]] | None = None
                cuda.streams[self.handle] = self

            def add(self, work: Callable[[], None]) -> None:
                cuda.current()
                (self.queue if self.recording is None else self.recording).append(work)

            def synchronize(self) -> None:
                cuda.current()
                assert self.recording is None, "a stream that is being recorded cannot be waited for"
                queue, self.queue = self.queue, []
                for work in queue:
                    work()

        class Event:
            def __init__(self, flags: int = 0) -> None:
                cuda.current()
                self.flags, self.stream, self.at = flags, None, 0.0

            def record(self, stream: Any) -> None:
                self.stream = stream

                def reached() -> None:
                    cuda.clock += 1.0
                    self.at = cuda.clock

                stream.add(reached)

            def synchronize(self) -> None:
                cuda.slept += self.flags
                assert self.stream is not None
                self.stream.synchronize()

            def time_since(self, before: Any) -> float:
                return (self.at - before.at) * cuda.millisecond

        self.Context, self.Device, self.Stream, self.Event = Context, Device, Stream, Event
        self._Allocation = Allocation
        self.streams: dict[int, Any] = {}
        self.clock, self.millisecond = 0.0, 0.01

    def init(self) -> None:
        pass

    def current(self) -> None:
        assert getattr(self._here, "depth", 0) > 0, "no context is current in this thread"

    def mem_alloc(self, size: int) -> Any:
        self.current()
        if self.heap.nbytes + size > self.limit:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return self._Allocation(self.heap.allocate(size))

    def mem_get_info(self) -> tuple[int, int]:
        return self.limit - self.heap.nbytes, self.limit

    def memcpy_htod_async(self, to: Any, array: np.ndarray, stream: Any) -> None:
        def copy() -> None:
            self.heap.at(int(to), array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        stream.add(copy)

    def memcpy_dtoh_async(self, array: np.ndarray, source: Any, stream: Any) -> None:
        stream.add(lambda: np.copyto(array.reshape(-1).view(np.uint8), self.heap.at(int(source), array.nbytes)))


class FakeLibcuda:
    """What stands for libcuda: locked pages and CUDA graphs. refuses: the network cannot be recorded."""

    def __init__(self, cuda: Cuda, refuses: bool = False) -> None:
        self.cuda, self.refuses = cuda, refuses
        self.made: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0
        self.captured = 0

    def lock(self, address: int, size: int) -> None:
        self.cuda.current()
        assert address % 4096 == 0
        self.cuda.pinned.blocks[address] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unlock(self, address: int) -> None:
        self.cuda.current()
        del self.cuda.pinned.blocks[address]

    def is_lost(self) -> bool:
        self.cuda.current()
        return self.cuda.broken

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        from app.gpu.libcuda import CaptureFailed

        found = self.cuda.streams[stream]
        found.recording = []
        try:
            work()
        finally:
            recorded, found.recording = found.recording, None
        if self.refuses:
            raise CaptureFailed("cuStreamEndCapture failed with CUDA error 901")
        self.captured += 1
        self.made[self.captured] = recorded
        return self.captured

    def launch(self, handle: int, stream: int) -> None:
        self.launched += 1
        for work in self.made[handle]:
            self.cuda.streams[stream].add(work)

    def destroy(self, handle: int) -> None:
        del self.made[handle]


class Trt:
    """What stands for `tensorrt`: an engine that computes `work(inputs)` with numpy, where its addresses point.

    inputs, outputs: name → (dtype, shape with -1). profiles: per profile name → (smallest, largest). An output whose
    `shapes` gives None has a shape that only the values tell: TensorRT asks an allocator for its memory.
    """

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    class IOutputAllocator:
        def __init__(self) -> None:
            pass

    class IProfiler:
        def __init__(self) -> None:
            pass

    class LayerInformationFormat:
        JSON = "json"

    class TensorIOMode:
        INPUT, OUTPUT = "in", "out"

    class TensorLocation:
        HOST, DEVICE = "host", "device"

    def __init__(
        self,
        cuda: Cuda,
        inputs: dict[str, tuple[str, tuple[int, ...]]],
        outputs: dict[str, tuple[str, tuple[int, ...]]],
        profiles: list[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]],
        shapes: Callable[[dict[str, tuple[int, ...]]], dict[str, tuple[int, ...] | None]],
        work: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
        on_host: tuple[str, ...] = (),
    ) -> None:
        self.cuda, self.given, self.made, self.profiles = cuda, inputs, outputs, profiles
        self.shapes, self.work, self.on_host = shapes, work, on_host
        self.told: list[tuple[Any, ...]] = []  # the calls that changed an execution context
        self.refuse = ""  # what TensorRT logs instead of running
        self.loads = True
        self.layers: dict[str, Any] = {"Layers": []}  # what the inspector tells,
        self.layer_ms: dict[str, float] = {}  # and a profiler is told of every run
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()  # execution contexts that somebody holds

    def nptype(self, dtype: str) -> Any:
        return np.dtype(dtype).type

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        return _Runtime(self)


class _Runtime:
    def __init__(self, trt: Trt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, blob: bytes) -> Any:
        if not self._trt.loads:
            self._trt.logger.log(1, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag)")
            return None
        return _Engine(self._trt)


class _Engine:
    def __init__(self, trt: Trt) -> None:
        self._trt = trt
        self._names = [*trt.given, *trt.made]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(trt.profiles)
        self.num_aux_streams = 1
        self.device_memory_size_v2 = 4096

    def get_tensor_name(self, n: int) -> str:
        return self._names[n]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self._trt.given else "out"

    def get_tensor_location(self, name: str) -> str:
        return "host" if name in self._trt.on_host else "device"

    def get_tensor_dtype(self, name: str) -> str:
        return (self._trt.given | self._trt.made)[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._trt.given | self._trt.made)[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        smallest, largest = self._trt.profiles[profile][name]
        return [smallest, largest, largest]

    def create_engine_inspector(self) -> Any:
        return _Inspector(self._trt)

    def create_execution_context(self) -> Any:
        made = _Context(self._trt)
        self._trt.contexts.add(made)
        return made


class _Inspector:
    execution_context: Any = None

    def __init__(self, trt: Trt) -> None:
        self._trt = trt

    def get_engine_information(self, form: str) -> str:
        self._trt.cuda.current()
        assert form == "json"
        if self.execution_context is None or self.execution_context.shapes.keys() != self._trt.given.keys():
            told = json.dumps(self._trt.layers)
            return re.sub(r'("(?:Format/)?Datatype": )"[^"]*"', r'\1"N/A due to dynamic shapes"', told)
        return json.dumps(self._trt.layers)


class _Context:
    profiler: Any = None

    def __init__(self, trt: Trt) -> None:
        self._trt = trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.active_optimization_profile = 0

    def set_aux_streams(self, streams: list[int]) -> None:
        assert all(stream in self._trt.cuda.streams for stream in streams)

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        if self._trt.refuse:
            self._trt.logger.log(1, self._trt.refuse)
            raise RuntimeError("Error in set optimization profile async.")
        self._trt.told.append(("profile", profile))
        self.active_optimization_profile, self.shapes = profile, {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._trt.told.append(("shape", name, shape))
        bounds = self._trt.profiles[self.active_optimization_profile].get(name)
        if bounds and not all(a <= n <= b for a, n, b in zip(bounds[0], shape, bounds[1], strict=True)):
            self._trt.logger.log(1, f"setInputShape: {name} is out of profile")
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shapes.keys() == self._trt.given.keys(), "not every input has its shape"
        found = self._trt.shapes(self.shapes)[name]
        return tuple(-1 for _ in self._trt.made[name][1]) if found is None else found

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._trt.told.append(("address", name, address))
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt, cuda = self._trt, self._trt.cuda
        if trt.refuse:
            trt.logger.log(1, trt.refuse)
            return False
        shapes, addresses, allocators = dict(self.shapes), dict(self._addresses), dict(self._allocators)

        def array(name: str, dtype: str, shape: tuple[int, ...], address: int) -> np.ndarray:
            heap = cuda.pinned if name in trt.on_host else cuda.heap
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return heap.at(address, size).view(dtype).reshape(shape)

        def run() -> None:
            if cuda.fail is not None:
                raise cuda.fail
            given = {n: array(n, dtype, shapes[n], addresses[n]) for n, (dtype, _) in trt.given.items()}
            for name, found in trt.work(given).items():
                address = addresses.get(name, 0)
                if name in allocators:
                    allocators[name].notify_shape(name, found.shape)
                    address = allocators[name].reallocate_output(name, 0, found.nbytes, 256)
                    if found.nbytes and not address:
                        raise OutOfMemory("no memory for an output")
                array(name, trt.made[name][0], found.shape, address)[...] = found
            for name, ms in trt.layer_ms.items() if self.profiler is not None else ():
                self.profiler.report_layer_time(name, ms)

        cuda.streams[stream].add(run)
        return True
