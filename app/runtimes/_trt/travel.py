"""Plans do not travel: what one is tied to, and whether that is what is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.gpu import driver
from app.runtimes._trt.flavour import Flavour

# What a plan is tied to; another driver of the same CUDA takes it.
_TIES = (("version", "version"), ("device", "GPU"), ("compute_capability", "compute capability"))


def built_for(flavour: Flavour) -> dict[str, Any]:
    """What a plan that is built here is tied to. Without a GPU its facts are None."""
    gpu = driver.gpu()
    return {
        "runtime": flavour.name,
        "version": flavour.version,
        "device": gpu.name if gpu else None,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}" if gpu else None,
        "cuda": gpu.cuda if gpu else None,
        "driver": gpu.driver if gpu else None,
    }


def misfit(had: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why a plan that was built for `had` is none for `here`; None where it is one. What was not known when it was
    built ties it to nothing: a plan of TensorRT for RTX that was built without a GPU runs on every one that it knows.
    """
    apart = [
        f"{told} {had[name]}, here {here.get(name) or 'none'}"
        for name, told in _TIES
        if had.get(name) is not None and had[name] != here.get(name)
    ]
    return "; ".join(apart) or None
