"""The two of them: what each is called, where it comes from, which GPUs it knows, and whether it can be used here."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

from app.errors import Unavailable
from app.gpu import driver
from app.runtimes import Availability

Capability = tuple[int, int]


@dataclass(frozen=True)
class Flavour:
    """module: what is imported. builds_anywhere: without a GPU, too. knows(capability, version): why a GPU cannot be
    used, or None."""

    name: str
    module: str
    product: str
    install: str
    packages: tuple[str, ...]
    builds_anywhere: bool
    only: tuple[Capability, ...] = ()

    @property
    def version(self) -> str | None:
        for package in self.packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    @property
    def is_installed(self) -> bool:
        return _is_there(self.module)

    @property
    def toolkit(self) -> str | None:
        """The CUDA that the installed packages are of, as in "13". None where their names do not tell."""
        cuda = {name.rpartition("-cu")[2] for name in self.packages if "-cu" in name and _is_installed(name)}
        return max(cuda, key=int, default=None)

    def library(self) -> Any:
        """The module itself. Raises Unavailable where it is not installed, or its libraries are not found."""
        if not self.is_installed:
            raise self.refusal(self._uninstalled())
        try:
            return _imported(self.module)
        except Exception as error:  # its libraries are separate packages: an ImportError, or one of its own
            raise self.refusal(f"{self.product} {_unloaded(error)}") from error

    def available(self) -> Availability:
        """Asks libcuda before anything of NVIDIA's is imported, and imports both libraries last, where all else fits:
        bindings are there without what they bind more often than one would think."""
        gpu, version = driver.look(), self.version
        if isinstance(gpu, str):
            return Availability(False, gpu, version=version)
        if not self.is_installed:
            return Availability(False, self._uninstalled())
        if why := self.unfit(gpu.capability, version) or self._too_new(gpu):
            return Availability(False, why, version=version, device=gpu.name)
        if not _is_there("pycuda"):
            return Availability(False, f"pycuda is not installed: {self.install}", version=version, device=gpu.name)
        for product, module in ((self.product, self.module), ("pycuda", "pycuda.driver")):
            try:
                _imported(module)
            except Exception as error:
                return Availability(False, f"{product} {_unloaded(error)}", version=version, device=gpu.name)
        return Availability(True, precisions=precisions(gpu.capability), version=version, device=gpu.name)

    def unfit(self, capability: Capability, version: str | None) -> str | None:
        """Why this version cannot use a GPU of that compute capability; None where it can."""
        said = f"GPU is sm {capability[0]}.{capability[1]}"
        release = ".".join((version or "").split(".")[:1]) or "?"
        if self.only:
            if capability in self.only:
                return None
            return f"{said}, {self.product} knows {', '.join(f'{a}.{b}' for a, b in self.only)} alone"
        least = _least(version)
        return None if capability >= least else f"{said}, {self.product} {release} needs {least[0]}.{least[1]}"

    def _too_new(self, gpu: driver.Gpu) -> str | None:
        """Why the driver is too old for the CUDA that the installed packages are of; None where it is not, or that is
        not known."""
        newest, known = int(self.toolkit or 0), int(gpu.cuda.split(".")[0])
        if newest <= known:
            return None
        return (
            f"{self.product} here is for CUDA {newest}, and the driver ({gpu.driver or 'of unknown version'}) knows "
            f"{gpu.cuda}: a newer driver, or the package for CUDA {known} ({self.module.replace('_', '-')}-cu{known})"
        )

    def refusal(self, why: str) -> Unavailable:
        return Unavailable(
            f"no engine of {self.product} here: {why}",
            code="runtime_unavailable",
            hint="choose openvino or onnxruntime, or use a machine with an NVIDIA GPU",
            retryable=False,
        )

    def _uninstalled(self) -> str:
        return f"{self.product} is not installed: {self.install}"


TENSORRT = Flavour(
    "tensorrt", "tensorrt", "TensorRT", "pip install enginesmith[gpu]",
    ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), False,
)  # fmt: skip
# Its list of compute capabilities, as its enum ComputeCapability has it: no data centre GPU since Ampere.
RTX = Flavour(
    "tensorrt_rtx", "tensorrt_rtx", "TensorRT for RTX", "pip install enginesmith[rtx]",
    ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), True,
    ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)),
)  # fmt: skip


def precisions(capability: Capability) -> tuple[str, ...]:
    """What a GPU computes in. Turing has neither tf32 nor bf16."""
    return ("fp32", "tf32", "fp16", "bf16", "int8") if capability >= (8, 0) else ("fp32", "fp16", "int8")


def _least(version: str | None) -> Capability:
    """Of TensorRT's support matrices: Volta went with 10.5, and what is older with 10.0."""
    numbers = [int(n) for n in (version or "11").split(".")[:2] if n.isdecimal()]
    if numbers < [10]:
        return (6, 0)
    return (7, 0) if numbers < [10, 5] else (7, 5)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses it; a module that was put there without a spec
        return sys.modules.get(module) is not None


@functools.cache
def _imported(module: str) -> Any:
    return importlib.import_module(module)


def _unloaded(error: Exception) -> str:
    return f"is installed and does not load: {' '.join(str(error).split())[:200] or type(error).__name__}"
