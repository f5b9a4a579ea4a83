"""The GPU that is none has no call that pycuda and TensorRT lack: what runs over it asks for nothing that is not there.

tests/golden/pycuda.json are the names of pycuda.driver 2026.1; those of TensorRT: see scripts/tensorrt_names.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_gpu
import pytest
from fake_gpu import Cuda, Trt

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# What tests set and ask.
OWN = {"heap", "pinned", "limit", "fail", "broken", "slept", "current", "streams", "clock", "millisecond"}


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_pycuda() -> None:
    known = {of: set(names) for of, names in json.loads((GOLDEN / "pycuda.json").read_text())["names"].items()}
    cuda = Cuda()
    assert public(cuda) - OWN <= known[""]
    context = cuda.Device(0).retain_primary_context()
    context.push()
    found = {
        "Context": context, "Device": cuda.Device, "Stream": cuda.Stream(), "Event": cuda.Event(),
        "DeviceAllocation": cuda.mem_alloc(1), "event_flags": cuda.event_flags,
    }  # fmt: skip
    assert public(cuda.Context) <= known["Context"]
    own = {"add", "queue", "recording", "address", "at", "flags", "stream"}
    assert {of: public(thing) - own - known[of] for of, thing in found.items()} == {of: set() for of in found}


@pytest.mark.parametrize("version", ["8.6", "10", "11", "rtx"])
def test_tensorrt(version: str) -> None:
    known = json.loads((GOLDEN / "tensorrt" / f"{version}.json").read_text())["names"]
    assert {"ILogger", "IOutputAllocator", "TensorIOMode", "TensorLocation", "Runtime"} <= public(Trt) & set(known[""])
    assert {"init_libnvinfer_plugins", "nptype"} <= public(Trt) & set(known[""])
    # Of what an engine and a Runtime have, tests set nothing: every public name is one that is called.
    classes = {"Runtime": "_Runtime", "ICudaEngine": "_Engine", "IExecutionContext": "_Context"}
    for of, name in classes.items():
        assert public(getattr(fake_gpu, name)) <= set(known[of])
