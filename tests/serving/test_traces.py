"""A prediction's trace, through the whole app to a collector."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from collector import Collector

from app.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_predictions_are_traced_to_the_engine(
    settings: Settings, publish: Any, serve: Callable[..., Any]
) -> None:
    publish(factor=2.0)
    body = io.BytesIO()
    np.save(body, np.ones((2, 3), np.float32))
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "Content-Type": "application/x-npy"}
    v2 = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    with Collector() as collector:
        async with serve(settings.model_copy(update={"otlp_endpoint": collector.url})) as (_, client):
            assert (await client.put("/v1/deployments/net", json={"model": "net@1"})).is_success
            for path, given in (
                ("/predict/net", {"content": body.getvalue(), "headers": headers}),
                ("/predict/nope", {"content": body.getvalue(), "headers": headers}),
                ("/v2/models/net/infer", {"json": v2, "headers": {"traceparent": headers["traceparent"]}}),
            ):
                assert (await client.post(path, **given)).status_code in (200, 404)
    ours = [span for span in collector.spans if span.trace == TRACE]
    first, missing, second = sorted((s for s in ours if s.kind == "server"), key=lambda span: span.began)
    assert {span.parent for span in (first, missing, second)} == {SPAN}
    assert (first.name, second.name.split("{")[0]) == ("POST /predict/{deployment}", "POST /v2/models/")
    for span, rows in ((first, 2), (second, 1)):
        assert span.attributes["enginesmith.deployment"] == "net"
        assert span.attributes["enginesmith.model"] == "net@1"
        assert span.attributes["enginesmith.version"] == "1"
        assert span.attributes["enginesmith.batch.rows"] == rows
        assert span.attributes["enginesmith.batch.requests"] == 1
        assert span.attributes["http.response.status_code"] == 200
        inside = [s for s in ours if s.parent == span.id]
        assert [s.name for s in sorted(inside, key=lambda s: (s.began, s.ended))] == [
            "queue", "compute_input", "compute_infer", "compute_output",
        ]  # fmt: skip
        assert all(span.began <= s.began <= s.ended <= span.ended for s in inside)
    assert missing.attributes["http.response.status_code"] == 404
    assert missing.error is None
    assert not [s for s in ours if s.parent == missing.id]
