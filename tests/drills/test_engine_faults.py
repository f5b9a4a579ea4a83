"""Models that raise, hang or answer NaN, posted through the API as anybody could, imported, converted and deployed."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from enginesmith import Client
from running import Service, start_service, until

from . import networks
from .field import ONES, calling, deploy, log_of, memory_mib, pids, predict, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MODELS = {"hanging": networks.hanging, "gathering": networks.gathering, "logarithm": networks.logarithm}
FOREVER = 1e15


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two fronts"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    arguments = ("--http-processes", "2") if request.param == 2 else ()
    started = start_service(tmp_path_factory.mktemp("faults"), arguments=arguments)
    with Client(started.url) as client:
        for name, made in MODELS.items():
            path = started.data / f"{name}.onnx"
            path.write_bytes(made())
            client.push(path, name, wait=True)
            job = client.jobs.submit("convert", model=f"{name}@1", target="onnxruntime", max_batch=8, wait=True)
            assert job.result.model == f"{name}@2"
    yield started
    assert started.stop() == 0


def rows(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]["logits"]


def test_a_run_that_hangs_is_left_at_the_deadline_and_its_engine_replaced(service: Service) -> None:
    deploy(service, "hanging", "hanging@2", run_timeout_s=2, instances=1)
    assert rows(predict(service, "hanging", [[3, 2, 1]])) == [[3, 2, 1]]
    ids = pids(service)
    began = time.monotonic()
    late = predict(service, "hanging", [[FOREVER, 0, 0]], **{"X-Timeout-Ms": "300"})
    waited_s = time.monotonic() - began
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded"), late.text
    # Others wait for the run that hangs no longer than until it is found, and are answered by the engine after it.
    began = time.monotonic()
    assert rows(predict(service, "hanging", [[4, 5, 6]])) == [[4, 5, 6]]
    replaced_s = time.monotonic() - began
    # Who has no deadline is told when it is found.
    hung = predict(service, "hanging", [[FOREVER, 0, 0]])
    assert (hung.status_code, hung.json()["code"]) == (504, "engine_hung"), hung.text
    assert rows(predict(service, "hanging")) == [[1, 1, 1]]
    told = httpx.post(
        f"{service.url}/v2/models/hanging/infer",
        json={
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [FOREVER, 0, 0]}],
            "parameters": {"timeout": 200_000},
        },
        timeout=240,
    )
    assert told.status_code == 504, told.text
    assert told.json()["error"]
    assert rows(predict(service, "hanging")) == [[1, 1, 1]]
    assert pids(service) == ids
    print(f"\n504 after {waited_s:.2f} s with 300 ms; replaced within {replaced_s:.2f} s (run_timeout_s=2)")


def test_other_deployments_go_on_while_one_hangs(service: Service) -> None:
    deploy(service, "hanging", "hanging@2", run_timeout_s=2)
    deploy(service, "logarithm", "logarithm@2")
    with calling(service, [request("/predict/logarithm", ONES)], mode="closed", connections=4, seconds=3600) as made:
        for _ in range(3):
            assert predict(service, "hanging", [[FOREVER, 0, 0]]).status_code == 504
        told = made.stop()
    told.only(200)


def test_engines_that_hang_again_and_again_come_back(service: Service) -> None:
    """More often than there may be threads that hang: those that do must not stay for ever."""
    deploy(service, "hanging", "hanging@2", run_timeout_s=1)
    ids, held = pids(service), memory_mib(service)
    for _ in range(12):
        assert predict(service, "hanging", [[FOREVER, 0, 0]]).status_code in (503, 504)
    until(lambda: predict(service, "hanging", [[7, 8, 9]]).status_code == 200)
    assert rows(predict(service, "hanging", [[7, 8, 9]])) == [[7, 8, 9]]
    assert pids(service) == ids
    assert memory_mib(service) < held + 256


def test_a_run_that_raises_fails_its_own_batch_alone(service: Service) -> None:
    deploy(service, "gathering", "gathering@2", max_batch=4)
    good: list[int] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            good.append(predict(service, "gathering", [[number, 0, 0]]).status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, n) for n in range(4)]
        try:
            for _ in range(20):
                bad = predict(service, "gathering", [[1000, 0, 0]])
                assert bad.status_code == 422, bad.text
                assert "1020" in bad.json()["detail"]
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert set(good) <= {200, 422}
    # Its batch, which is at most four requests, and nobody else's.
    assert good.count(422) <= 20 * 3
    assert good.count(200) > 0
    assert rows(predict(service, "gathering", [[20, 0, 0]])) == [[20, 0, 0]]


def test_nan_is_null_in_json_and_itself_as_bytes(service: Service) -> None:
    deploy(service, "logarithm", "logarithm@2")
    x = [[-1, 1, 0]]
    assert rows(predict(service, "logarithm", x)) == [[None, 0.0, None]]
    assert "NaN" not in predict(service, "logarithm", x).text
    binary = predict(service, "logarithm", x, Accept="application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(binary.content)), [[np.nan, 0, -np.inf]])
    one = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": x[0]}
    told = httpx.post(f"{service.url}/v2/models/logarithm/infer", json={"inputs": [one]}, timeout=240)
    assert told.status_code == 200, told.text
    assert json.loads(told.text, parse_constant=pytest.fail)["outputs"][0]["data"] == [None, 0.0, None]
    asked = {"inputs": [one], "parameters": {"binary_data_output": True}}
    told = httpx.post(f"{service.url}/v2/models/logarithm/infer", json=asked, timeout=240)
    length = int(told.headers["inference-header-content-length"])
    np.testing.assert_array_equal(np.frombuffer(told.content[length:], np.float32), [np.nan, 0, -np.inf])
    assert "an error that nobody foresaw" not in log_of(service)
