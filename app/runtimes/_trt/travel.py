"""Plans do not travel: what one is tied to."""

from __future__ import annotations

from typing import Any

from app.gpu import driver
from app.runtimes._trt.flavour import Flavour

_TIES = ("version", "toolkit", "device", "compute_capability")


def built_for(flavour: Flavour) -> dict[str, Any]:
    """What a plan that is built here is tied to. toolkit: the CUDA that TensorRT is of; cuda: the newest one that the
    driver knows. Without a GPU its facts are None."""
    gpu = driver.gpu()
    return {
        "runtime": flavour.name,
        "version": flavour.version,
        "toolkit": flavour.toolkit,
        "device": gpu.name if gpu else None,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}" if gpu else None,
        "cuda": gpu.cuda if gpu else None,
        "driver": gpu.driver if gpu else None,
    }


def ties(flavour: Flavour) -> dict[str, str] | None:
    """See app.runtimes.ties. A driver is none: a plan runs on any that TensorRT itself runs on."""
    here = built_for(flavour)
    found = {name: here[name] for name in _TIES if here[name] is not None}
    return found if "device" in found else None
