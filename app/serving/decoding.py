"""Images on their way to tensors, in threads: a bounded number of them, and none that has become useless meanwhile."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy.typing as npt

from app.domain.records import Version
from app.errors import DeadlineExceeded, Overloaded
from app.serving.wire import decode_image

_LONGEST_RETRY_S = 60
Row = npt.NDArray[Any]


class Decoding:
    """Of one version. waiting: images that wait for a thread, or are in one."""

    def __init__(self, version: Version) -> None:
        self.waiting = 0
        self._version = version
        self._each_s = 0.0  # what one takes, smoothed

    async def rows(
        self, images: Sequence[bytes], threads: Executor, most: int, deadline: float | None
    ) -> list[Row | BaseException]:
        """A row for each image, or what decoding it raised; as many at once as there are threads.

        most: how many may wait. deadline: on time.monotonic's clock. Raises Overloaded, DeadlineExceeded.
        """
        if self.waiting and self.waiting + len(images) > most:
            wait = min(_LONGEST_RETRY_S, max(1, math.ceil(self.waiting * self._each_s / (os.cpu_count() or 1))))
            raise Overloaded(
                f"{self.waiting} images wait to be decoded, and at most {most} may",
                hint=f"try again in {wait} s, or send tensors",
                headers={"Retry-After": str(wait)},
            )
        loop = asyncio.get_running_loop()
        self.waiting += len(images)
        try:
            work = [loop.run_in_executor(threads, partial(self._row, image, deadline)) for image in images]
            found = await asyncio.gather(*work, return_exceptions=True)
        finally:
            self.waiting -= len(images)
        for row in found:
            if isinstance(row, DeadlineExceeded):
                raise row
        return found

    def _row(self, image: bytes, deadline: float | None) -> Row:
        """In a thread."""
        begun = time.monotonic()
        if deadline is not None and begun > deadline:
            raise DeadlineExceeded("the deadline passed before the image was decoded")
        row = decode_image(image, self._version)
        took = time.monotonic() - begun
        self._each_s = 0.9 * self._each_s + 0.1 * took if self._each_s else took
        return row
