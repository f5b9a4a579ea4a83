"""Where a plan may run that was built elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from app.runtimes._trt.travel import misfit

HERE: dict[str, Any] = {
    "runtime": "tensorrt", "version": "11.4.0", "device": "NVIDIA H200", "compute_capability": "9.0", "cuda": "13.0",
    "driver": "580.82",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"driver": "570.00", "cuda": "12.8"}, None),
        ({"device": None, "compute_capability": None, "driver": None, "cuda": None}, None),
        ({"device": "NVIDIA A10"}, "GPU NVIDIA A10, here NVIDIA H200"),
        ({"version": "10.13.3"}, "version 10.13.3, here 11.4.0"),
        (
            {"device": "NVIDIA A10", "compute_capability": "8.6"},
            "GPU NVIDIA A10, here NVIDIA H200; compute capability 8.6, here 9.0",
        ),
    ],
)
def test_a_plan_of_another_gpu_or_version(change: dict[str, Any], why: str | None) -> None:
    assert misfit(HERE | change, HERE) == why


def test_where_there_is_no_gpu() -> None:
    assert misfit(HERE, HERE | {"device": None, "compute_capability": None}) is not None
