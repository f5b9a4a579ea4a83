"""The primary context of a GPU, shared with whatever else is in the process. pycuda and the standard library alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.gpu.libcuda import Libcuda


class Device:
    """The primary context of one GPU. Never released: every library of this process lives in it."""

    def __init__(self, cuda: Any, ordinal: int = 0, libcuda: Libcuda | None = None) -> None:
        cuda.init()
        self.cuda = cuda
        self.libcuda = libcuda or Libcuda()
        self._context = cuda.Device(ordinal).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context, current in this thread. pycuda aborts the process where a thread ends with one left over."""
        self._context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    def is_lost(self) -> bool:
        """Whether this process can do nothing on the GPU any more. What kernels fail with (an illegal address, a failed
        launch, an uncorrectable ECC error) stays with the context: 'the process must be terminated and relaunched', say
        the descriptions of these codes in the CUDA driver API."""
        try:
            with self.current():
                return self.libcuda.is_lost()
        except self.cuda.Error:
            return True

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all that the GPU has."""
        with self.current():
            free, total = self.cuda.mem_get_info()
        return int(free), int(total)
