"""What earlier builds have measured of kernels, for the builds of a job: see `app.storage.timings`."""

from __future__ import annotations

from app import runtimes
from app.gpu import driver
from app.runtimes import TimingCache
from app.storage.timings import Timings
from workers.context import Context

# TensorRT for RTX measures nothing when it builds: since 1.2 its timing caches do nothing, as its bindings say.
_MEASURES = ("tensorrt",)


def timing_cache(ctx: Context, target: str) -> TimingCache | None:
    """For BuildOptions: what is known of kernels on the GPU that is here. None where builds measure nothing."""
    ties = runtimes.ties(target) if target in _MEASURES else None
    if ties is None:
        return None
    gpu = driver.gpu()
    told = [target, *(ties[name] for name in sorted(ties)), f"CUDA {gpu.cuda}" if gpu else ""]
    return Kept(ctx, Timings(ctx.artifacts, ctx.catalog.redis, ", ".join(told)))


class Kept:
    """Those in the store. A store that is full or away costs time, and never the build."""

    def __init__(self, ctx: Context, timings: Timings) -> None:
        self._ctx, self._timings = ctx, timings

    def read(self) -> bytes:
        try:
            return self._timings.read()
        except Exception as error:
            self._ctx.log(f"kernels are measured anew, what is known of them could not be read: {error}", "warning")
            return b""

    def write(self, measured: bytes) -> bool:
        try:
            return self._timings.write(measured)
        except Exception as error:
            self._ctx.log(f"what was measured of kernels is not kept: {error}", "warning")
            return True
