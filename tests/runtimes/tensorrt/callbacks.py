"""Calls what we have subclassed of TensorRT's as TensorRT does, through the C++ objects behind it; no GPU is needed.

    python -m tests.runtimes.tensorrt.callbacks MODULE        prints what it found, as JSON

The bindings themselves turn arguments and answers from one language into the other: whether our classes suit them
shows here, over empty libraries too. The places of the functions are those of NvInferRuntime.h of 8.6, 10 and 11.
Python 3.10.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from typing import Any

import numpy as np

from app.gpu.memory import allocator
from app.gpu.messages import listener

_POINTER = ctypes.c_void_p
# Of ILogger.log; of IOutputAllocator.reallocateOutput, reallocateOutputAsync and notifyShape.
_PLACES: dict[str, tuple[int, int | None, int | None, int]] = {
    "8": (0, 1, None, 2), "10": (0, 4, 5, 6), "11": (4, 4, 5, 6), "tensorrt_rtx": (4, None, 4, 5),
}  # fmt: skip
_OBJECT = 16  # behind the head of a Python object, pybind11 keeps the address of the C++ one


class Heap:
    """As much of `pycuda.driver` as an allocator asks for. fails: there is no memory."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.next, self.fails, self.freed = 1 << 46, False, 0

    def mem_alloc(self, size: int) -> Any:
        if self.fails:
            raise self.Error("out of memory")
        self.next += 1 << 20
        return Block(self, self.next)


class Block:
    def __init__(self, heap: Heap, address: int) -> None:
        self._heap, self._address = heap, address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._heap.freed += 1


def function(thing: object, place: int, answer: Any, *arguments: Any) -> Any:
    """The virtual function at that place, of the C++ object behind a Python one."""
    this = _POINTER.from_address(id(thing) + _OBJECT).value
    assert this is not None
    table = _POINTER.from_address(this).value
    assert table is not None
    code = _POINTER.from_address(table + ctypes.sizeof(_POINTER) * place).value
    made = ctypes.PYFUNCTYPE(answer, _POINTER, *arguments)(code)
    return lambda *given: made(this, *given)


def main(module: str) -> dict[str, Any]:
    trt = importlib.import_module(module)
    major = trt.__version__.partition(".")[0]
    log, plain, in_order, notify = _PLACES.get(module) or _PLACES[major]
    logger = listener(trt)
    say = function(logger, log, None, ctypes.c_int, ctypes.c_char_p)
    for severity in range(5):
        say(severity, b"of severity %d" % severity)
    found: dict[str, Any] = {"version": trt.__version__, "said": logger.said()}

    class Dims(ctypes.Structure):
        _fields_ = (("n", ctypes.c_int32), ("d", (ctypes.c_int32 if major == "8" else ctypes.c_int64) * 8))

    common = (ctypes.c_char_p, _POINTER, ctypes.c_uint64, ctypes.c_uint64)
    for place in (plain, in_order):
        if place is None:
            continue
        heap = Heap()
        asked = allocator(trt, heap, np.dtype("float32"))
        signature, more = (common, ()) if place == plain else ((*common, _POINTER), (5,))
        allocate = function(asked, place, _POINTER, *signature)
        given = [allocate(b"y", None, size, 256, *more) == heap.next for size in (100, 10, 1000)]
        shape = Dims(2)
        shape.d[0], shape.d[1] = 5, 7
        function(asked, notify, None, ctypes.c_char_p, _POINTER)(b"y", ctypes.addressof(shape))
        heap.fails = True
        none = allocate(b"y", None, 10**9, 256, *more)
        name = "allocated" if place == plain else "allocated_in_order"
        found[name] = {"given": given, "shape": list(asked.shape), "no_memory": none, "freed": heap.freed}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
