"""Two hours' use in minutes: 100,000 predictions and 50 swaps; memory is as it was."""

from __future__ import annotations

import pytest

from . import networks
from .conftest import Start
from .field import ONES, ONES_V2, calling, deploy, memory_mib, publish, request
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PREDICTIONS, SWAPS = 100_000, 50
GROWTH_MIB = 12.0  # an allocator's own


def test_memory_is_flat(start: Start, tell: Tell) -> None:
    service = start()
    for number in (1, 2):
        publish(service, networks.scaled(number))
    asks = [request("/predict/web", ONES), request("/v2/models/web/infer", ONES_V2)]
    deploy(service, "web", "net@1")
    seen, answered, swaps = [], 0, 0
    while answered < PREDICTIONS or swaps < SWAPS:
        with calling(service, asks, mode="closed", connections=8, seconds=3600, check="factor") as made:
            for _ in range(SWAPS // 10):
                swaps += 1
                deploy(service, "web", f"net@{1 + swaps % 2}")
            told = made.stop()
        told.only(200)
        answered += told.statuses["200"]
        seen.append(memory_mib(service))
    settled = seen[len(seen) // 5 :]  # the first rounds fill pools and caches
    assert max(settled) - settled[0] < GROWTH_MIB, seen
    tell(
        f"{answered} predictions and {swaps} swaps, all answered by the version that the answer names; "
        f"{settled[0]:.0f} MiB after the first rounds, {seen[-1]:.0f} at the end"
    )
