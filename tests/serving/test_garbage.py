"""An answered prediction is gone at once: nothing of it waits for the garbage collector, which comes rarely."""

from __future__ import annotations

import gc
import gzip

import numpy as np
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.api.flights import Flight
from app.api.hot import Ask
from app.settings import Settings

from .test_hot import ROW, Client, served
from .test_predict import NPY, npy

JSON = "application/json"
INFER = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
LARGE = b'{"inputs": [' + b" " * 100_000 + b"[1, 2, 3]]}"  # comes in pieces, and is decoded in a thread
CASES = [
    ("/predict/plain", {"Content-Type": JSON}, ROW, 200),
    ("/predict/plain", {"Content-Type": JSON}, LARGE, 200),
    ("/predict/plain", {"Content-Type": NPY}, npy(np.ones((1, 3), np.float32)), 200),
    ("/v2/models/plain/infer", {"Content-Type": JSON}, INFER, 200),
    ("/v2/models/plain/infer", {"Content-Type": JSON, "Content-Encoding": "gzip"}, gzip.compress(INFER), 200),
    ("/predict/plain", {"Content-Type": JSON}, b'{"inputs": [[1]]}', 422),
    ("/predict/plain", {"Content-Type": "text/plain"}, ROW, 415),
    ("/predict/nobody", {"Content-Type": JSON}, ROW, 404),
]


async def test_nothing_is_left(settings: Settings) -> None:
    left: dict[int, int] = {}
    async with served(settings) as made:
        client = await made.connect()
        for number, case in enumerate(CASES):
            await ask(client, 3, *case)
            gc.collect()
            gc.disable()
            try:
                before = held()
                await ask(client, 20, *case)
                left[number] = held() - before
            finally:
                gc.enable()
    # A few are looked after a moment longer; 20 and more would be one of each.
    assert {number: more for number, more in left.items() if more > 10} == {}


async def ask(client: Client, times: int, path: str, headers: dict[str, str], body: bytes, status: int) -> None:
    for _ in range(times):
        assert (await client.post(body, path, **headers)).status == status


def held() -> int:
    """How many requests there are, in whatever form."""
    return sum(type(found) in (Ask, Flight, RequestResponseCycle) for found in gc.get_objects())
