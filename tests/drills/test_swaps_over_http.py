"""Fifty swaps and rollbacks over HTTP under constant load: no request fails, and no answer is another version's."""

from __future__ import annotations

import httpx
import pytest

from . import networks
from .conftest import Start
from .field import JSON, ONES, ONES_V2, calling, deploy, log_of, pids, publish, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SWAPS = 50


@pytest.mark.parametrize("processes", [1, 2])
def test_fifty_swaps_and_rollbacks(start: Start, processes: int) -> None:
    service = start(processes)
    for number in (1, 2, 3):
        publish(service, networks.scaled(number))
    deploy(service, "web", "net@1")
    ids = pids(service)
    asks = [request("/predict/web", ONES), request("/v2/models/web/infer", ONES_V2)]
    expected = "net@1"
    # Longer than swaps take; they end it.
    with calling(service, asks, 2, mode="closed", connections=12, seconds=3600, check="factor") as made:
        with httpx.Client(base_url=service.url, timeout=240) as client:
            for n in range(SWAPS):
                if n % 3 == 2:
                    put = client.post("/v1/deployments/web/rollback", headers={"Prefer": "wait=60"})
                else:
                    wanted = f"net@{1 + (int(expected[-1]) + n) % 3}"
                    put = client.put("/v1/deployments/web", json={"model": wanted}, headers={"Prefer": "wait=60"})
                assert put.status_code == 200, put.text
                told = put.json()
                assert told["status"] == "ready"
                expected = told["model"]
                # Whoever was told that it is ready gets no older one, by whatever process.
                for _ in range(2 * processes):
                    answer = httpx.post(f"{service.url}/predict/web", content=ONES, headers=JSON, timeout=240)
                    assert (answer.status_code, answer.json()["model"]) == (200, expected), answer.text
            assert not made.is_over
        told = made.stop()
    told.only(200)
    assert told.said.keys() == {"1", "2", "3"}
    print(f"\n{SWAPS} swaps, {told.statuses}, by version {told.said}, slowest {told.worst('good_s', 2):.3f} s")
    assert pids(service) == ids
    assert "an error that nobody foresaw" not in log_of(service)
