"""Ten times more load than there is room for: what is refused is told so, the rest is answered as fast as ever.

DRILL_SECONDS=10 makes it shorter."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import pytest
from running import Service

from . import networks
from .conftest import Start
from .field import (
    ONES,
    Calling,
    Fed,
    Feeding,
    Told,
    calling,
    deploy,
    log_of,
    memory_mib,
    pids,
    predict,
    publish,
    request,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SECONDS = int(os.environ.get("DRILL_SECONDS", "60"))
PEAK_S = 6
SETTLED_S = 1.5  # after which the queue is as it stays
CONNECTIONS = 64
ROW_S = 0.008
ASK = [request("/predict/net", ONES)]


class Seen(NamedTuple):
    told: Told
    fed: Fed
    most_mib: float


def seen(service: Service, made: Calling, seconds: float) -> Seen:
    """What the client got, and how the service was meanwhile."""
    began, most, feeding, fed = time.monotonic(), 0.0, None, None
    while not made.is_over:
        most = max(most, memory_mib(service))
        spent = time.monotonic() - began
        if feeding is None and spent > SETTLED_S:
            feeding = Feeding(service, "net")
        elif feeding is not None and fed is None and spent > seconds - 1.5:
            fed = feeding.so_far()
        time.sleep(0.1)  # between two looks at its memory
    assert feeding is not None
    return Seen(made.finish(), fed or feeding.so_far(), most)


def peak(service: Service) -> Seen:
    """A closed loop: the most there is."""
    order = {"mode": "closed", "connections": CONNECTIONS, "seconds": PEAK_S, "check": "factor"}
    with calling(service, ASK, **order) as made:
        found = seen(service, made, PEAK_S)
    found.told.only(200)
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_ten_times_the_capacity(start: Start, processes: int) -> None:
    service = start(processes)
    publish(service, networks.slow(ROW_S))
    deploy(service, "net", "net@1", threads=1, max_queue=256)
    peak(service)  # the first is for warming up
    before, held, ids = peak(service), memory_mib(service), pids(service)
    rate = 10 * before.told.sum("good_per_s")
    with calling(service, ASK, mode="open", seconds=SECONDS, check="factor", rate=rate, most=4000) as made:
        over = seen(service, made, SECONDS)
        began = time.monotonic()
        first = predict(service, "net")
        recovered_s = time.monotonic() - began
    after, told = peak(service), over.told
    peak_s = min(before.told.sum("good_per_s"), after.told.sum("good_per_s"))
    share = told.sum("good_per_s") / peak_s
    # The client and other programs take the processor from the engine, which is no fault of the service's. That the
    # engine always had something to run, and full batches, is its doing alone.
    fed = over.fed.infer / min(before.fed.infer, after.fed.infer) * over.fed.rows / before.fed.rows
    print(
        f"\npeak {before.told.sum('good_per_s'):.0f} and {after.told.sum('good_per_s'):.0f}/s, asked "
        f"{told.sum('sent_per_s'):.0f}/s {told.statuses}: goodput {share:.1%}, engine fed {fed:.1%} "
        f"({before.fed}, {over.fed}); 429 after p99 {1e3 * told.worst('refused_s', 1):.0f} ms, 200 after p99 "
        f"{told.worst('good_s', 1):.2f} s; memory {held:.0f}, {over.most_mib:.0f}, {memory_mib(service):.0f} MiB; then "
        f"the first answer after {1e3 * recovered_s:.0f} ms; connections {told.sum('open_most'):.0f}"
    )
    told.only(200, 429)
    assert told.statuses["429"] > told.statuses["200"]
    assert told.sum("unsent") == 0
    assert max(share, fed) >= 0.9
    assert first.status_code == 200
    assert pids(service) == ids
    assert over.most_mib < held + 256
    assert "an error that nobody foresaw" not in log_of(service)


def test_a_tiny_engine_where_http_is_the_limit(start: Start) -> None:
    """More clients than can be heard: whoever is heard is answered, and nobody is cut off."""
    service = start()
    publish(service, networks.scaled())
    deploy(service, "net", "net@1", threads=1)
    held = memory_mib(service)
    most = peak(service).told.sum("good_per_s")
    with calling(service, ASK, 2, mode="open", seconds=10, rate=5 * most, most=1000) as made:
        over = seen(service, made, 10)
    told = over.told
    print(
        f"\npeak {most:.0f}/s; due {10 * most:.0f}/s, sent {told.sum('sent_per_s'):.0f}/s, goodput "
        f"{told.sum('good_per_s'):.0f}/s, {told.statuses}, 200 in p99 {told.worst('good_s', 1):.2f} s, "
        f"memory {held:.0f}, {over.most_mib:.0f}, {memory_mib(service):.0f} MiB"
    )
    told.only(200, 429)
    assert predict(service, "net").status_code == 200
    assert over.most_mib < held + 256
