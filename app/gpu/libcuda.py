"""What pycuda lacks, through libcuda itself: page-locking memory of numpy's, and CUDA graphs.

pycuda 2026.1 has `register_host_memory`, which fails with a numpy that takes a base once. ctypes lets go of the GIL
during each call. Python 3.10 and the standard library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_CAPTURING = range(900, 910)  # CUDA_ERROR_STREAM_CAPTURE_*: about a recording, not about the GPU
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not spoil it


class Failed(Exception):
    """A call that did not succeed. code: CUDA's own number."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed with CUDA error {code}")
        self.code = code

    @property
    def is_out_of_memory(self) -> bool:
        return self.code == _OUT_OF_MEMORY


class CaptureFailed(Exception):
    """It cannot be recorded; done call by call it may well work."""


class Libcuda:
    """All of it in the context that is current in the calling thread. library: libcuda; or, in a test, another."""

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self._cuda = library or ctypes.CDLL("libcuda.so.1")

    def lock(self, address: int, size: int) -> None:
        """Page-locks memory of the host: copies from and to it need no buffer between. Raises Failed."""
        if code := self._cuda.cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):
            raise Failed("cuMemHostRegister", code)

    def unlock(self, address: int) -> None:
        """The memory goes on as the host's alone."""
        self._cuda.cuMemHostUnregister(ctypes.c_void_p(address))

    def is_lost(self) -> bool:
        """Whether not even an empty stream can be waited for in this context. Asked of a stream of its own: to wait for
        the whole context spoils what other threads are recording ('Prohibited and Unhandled Operations' in the CUDA
        programming guide), and fails while they are."""
        stream = ctypes.c_void_p()
        code: int = self._cuda.cuStreamCreate(ctypes.byref(stream), _NON_BLOCKING)
        if not code:
            code = self._cuda.cuStreamSynchronize(stream)
            self._cuda.cuStreamDestroy_v2(stream)
        return code not in (0, _OUT_OF_MEMORY) and code not in _CAPTURING

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A CUDA graph: what `work` asks of the stream, recorded and not run, to be launched as one. Returns a handle.
        Raises CaptureFailed, and then the stream is as it was."""
        if code := self._cuda.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), _THREAD_LOCAL):
            raise CaptureFailed(f"cuStreamBeginCapture failed with CUDA error {code}")
        graph, problem = ctypes.c_void_p(), ""
        try:
            work()
        except Exception as error:
            problem = str(error)
        code = self._cuda.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            if problem or code or not graph.value:
                raise CaptureFailed(problem or f"cuStreamEndCapture failed with CUDA error {code}")
            made = ctypes.c_void_p()
            if code := self._cuda.cuGraphInstantiateWithFlags(ctypes.byref(made), graph, ctypes.c_ulonglong(0)):
                raise CaptureFailed(f"cuGraphInstantiate failed with CUDA error {code}")
            return int(made.value or 0)
        finally:
            if graph.value:
                self._cuda.cuGraphDestroy(graph)

    def launch(self, handle: int, stream: int) -> None:
        """Raises Failed."""
        if code := self._cuda.cuGraphLaunch(ctypes.c_void_p(handle), ctypes.c_void_p(stream)):
            raise Failed("cuGraphLaunch", code)

    def destroy(self, handle: int) -> None:
        """Not while it runs."""
        self._cuda.cuGraphExecDestroy(ctypes.c_void_p(handle))
