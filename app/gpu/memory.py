"""Memory that a plan reads and writes: page-locked on the host, and as much on the GPU. numpy and pycuda alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from app.gpu.libcuda import Libcuda

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
_PAGE = 4096


class Memory:
    """Page-locked memory of the host and as much of the device, for one tensor. It grows by doubling.

    The host's is numpy's own, locked by CUDA: what somebody still reads when the lock goes stays as it is.
    """

    def __init__(self, cuda: Any, libcuda: Libcuda, on_host: bool, grown: Callable[[], None]) -> None:
        self._cuda, self._libcuda, self._on_host, self._grown = cuda, libcuda, on_host, grown
        self._raw: Array | None = None
        self._device: Any = None

    def array(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """A view for one tensor, at the beginning of the memory. It stays readable when the memory grows or goes."""
        size = math.prod(shape) * dtype.itemsize
        if self._raw is None or self._raw.nbytes < size:
            self._grow(1 << (max(1, size) - 1).bit_length())
        assert self._raw is not None
        return self._raw[:size].view(dtype).reshape(shape)

    def _grow(self, size: int) -> None:
        self._grown()
        self.free()
        whole = np.empty(size + _PAGE, np.uint8)
        start = -whole.ctypes.data % _PAGE
        raw = whole[start : start + size]
        if not self._on_host:
            self._device = self._cuda.mem_alloc(size)
        try:
            self._libcuda.lock(raw.ctypes.data, size)
        except BaseException:
            self.free()
            raise
        self._raw = raw

    @property
    def nbytes(self) -> int:
        return self._raw.nbytes if self._raw is not None else 0

    @property
    def host_address(self) -> int:
        assert self._raw is not None
        return int(self._raw.ctypes.data)

    @property
    def device_address(self) -> int:
        return int(self._device)

    def to_device(self, shape: Shape, dtype: np.dtype[Any], stream: Any) -> None:
        array = self.array(shape, dtype)
        if array.nbytes:
            self._cuda.memcpy_htod_async(self._device, array, stream)

    def to_host(self, array: Array, stream: Any) -> None:
        if array.nbytes and not self._on_host:
            self._cuda.memcpy_dtoh_async(array, self._device, stream)

    def free(self) -> None:
        """At once, and with the context current: pycuda leaks what a garbage collector frees in another thread."""
        raw, device = self._raw, self._device
        self._raw = self._device = None
        if device is not None:
            device.free()
        if raw is not None:
            self._libcuda.unlock(raw.ctypes.data)


def allocator(trt: Any, cuda: Any, dtype: np.dtype[Any]) -> Any:
    """Memory for an output whose shape only the run itself tells."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory: Any = None
            self.size = 0
            self.shape: Shape = ()

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            """Called during the run, before the values are written. 0: there is no memory."""
            if size > self.size or self.memory is None:
                try:
                    if self.memory is not None:
                        self.memory.free()
                    self.memory = cuda.mem_alloc(max(1, size))
                    self.size = size
                except cuda.Error:
                    self.memory, self.size = None, 0
                    return 0
            return int(self.memory)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def fetch(self, stream: Any) -> Array:
            array = np.empty(self.shape, dtype)
            if array.nbytes:
                cuda.memcpy_dtoh_async(array, self.memory, stream)
                stream.synchronize()
            return array

        def free(self) -> None:
            if self.memory is not None:
                self.memory.free()
            self.memory = None

    return Allocator()
