"""The Python client of Enginesmith: push a model, submit jobs, deploy, predict.

It knows HTTP only; torch is imported by `export` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client import Client
from .errors import ApiError, DeploymentFailed, EnginesmithError, JobFailed, TimedOut, Unreachable
from .records import Event, Job, Prediction, Record, Version

if TYPE_CHECKING:
    from .export import export as export

__all__ = [
    "ApiError",
    "Client",
    "DeploymentFailed",
    "EnginesmithError",
    "Event",
    "Job",
    "JobFailed",
    "Prediction",
    "Record",
    "TimedOut",
    "Unreachable",
    "Version",
    "export",
]


def __getattr__(name: str) -> Any:
    # Lazily: `export` needs torch, and a client that only predicts must not.
    if name == "export":
        from .export import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
