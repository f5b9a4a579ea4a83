"""A GPU that fails for good: only a fresh process can use it again, and gets it without a hand from anyone.

The echo runtime plays the GPU, which after one bad row is lost for all engines of the process, and for loading any.
"""

from __future__ import annotations

import json
import time

import pytest

from . import networks
from .conftest import Start
from .field import deploy, log_of, pids, predict, publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BAD = 13


@pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two fronts"])
def test_the_process_of_the_engines_is_started_again(start: Start, processes: int) -> None:
    service = start(processes)
    publish(service, json.dumps({"doom_on": BAD}).encode(), "gpu", format="echo", file="model.echo")
    publish(service, networks.logarithm(), "cpu")
    deploy(service, "gpu", "gpu@1")
    deploy(service, "cpu", "cpu@1")
    before = pids(service)
    for _ in range(2):
        lost = predict(service, "gpu", [[BAD, 0, 0]])
        assert (lost.status_code, lost.json()["code"]) == (503, "device_lost"), lost.text
        began = time.monotonic()
        while (answer := predict(service, "gpu", [[1, 2, 3]])).status_code != 200:
            assert answer.status_code == 503, answer.text
            assert time.monotonic() - began < 120
            time.sleep(0.1)
        assert answer.json()["outputs"]["logits"] == [[1, 2, 3]]
        assert predict(service, "cpu").status_code == 200
        print(f"\nthe GPU was lost; answered again after {time.monotonic() - began:.1f} s")
    assert pids(service) != before
    assert "this process ends, to be started again" in log_of(service)
