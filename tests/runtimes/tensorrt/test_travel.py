"""Where a plan may run that was built elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from app import runtimes
from app.gpu import driver
from app.gpu.driver import Gpu
from app.runtimes._trt import flavour, travel

HERE: dict[str, Any] = {
    "runtime": "tensorrt", "version": "11.4.0", "toolkit": "13", "device": "NVIDIA H200", "compute_capability": "9.0",
    "cuda": "13.0", "driver": "580.82",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"driver": "570.00", "cuda": "12.8"}, None),
        ({"device": None, "compute_capability": None, "driver": None, "cuda": None}, None),
        ({"device": "NVIDIA A10"}, "device NVIDIA A10, here NVIDIA H200"),
        ({"version": "10.13.3"}, "version 10.13.3, here 11.4.0"),
        ({"toolkit": "12"}, "toolkit 12, here 13"),
        ({"toolkit": None}, None),
        (
            {"device": "NVIDIA A10", "compute_capability": "8.6"},
            "device NVIDIA A10, here NVIDIA H200; compute capability 8.6, here 9.0",
        ),
    ],
)
def test_a_plan_of_another_gpu_or_version(
    change: dict[str, Any], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "look", lambda: Gpu("NVIDIA H200", (9, 0), "13.0", "580.82", 140 << 30))
    monkeypatch.setattr(flavour.importlib.metadata, "version", lambda package: "11.4.0")
    monkeypatch.setattr(flavour, "_is_installed", lambda package: package in ("tensorrt", "tensorrt-cu13"))
    assert travel.built_for(flavour.TENSORRT) == HERE
    assert runtimes.ties("tensorrt") == {
        "version": "11.4.0", "toolkit": "13", "device": "NVIDIA H200", "compute_capability": "9.0"
    }  # fmt: skip
    assert runtimes.misfit("tensorrt", HERE | change) == why


def test_where_there_is_no_gpu_nothing_is_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "look", lambda: "no NVIDIA driver")
    assert runtimes.ties("tensorrt") is None
    assert runtimes.misfit("tensorrt", HERE) is None


def test_engines_of_a_processor_travel() -> None:
    assert runtimes.ties("openvino") is None
    assert runtimes.misfit("openvino", {"version": "another"}) is None
