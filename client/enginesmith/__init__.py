"""The Python client of Enginesmith: push a model, submit jobs, deploy, predict.

It knows HTTP only; torch is imported inside `export` alone.
"""

from __future__ import annotations

from .client import Client
from .errors import (
    ApiError,
    BadSignature,
    DeploymentFailed,
    EnginesmithError,
    JobFailed,
    OtherNetwork,
    TimedOut,
    Unreachable,
)
from .export import Exported, export
from .graph import NotExpressible
from .records import Event, Job, Prediction, Record, Version
from .webhooks import verify_webhook

__all__ = [
    "ApiError",
    "BadSignature",
    "Client",
    "DeploymentFailed",
    "EnginesmithError",
    "Event",
    "Exported",
    "Job",
    "JobFailed",
    "NotExpressible",
    "OtherNetwork",
    "Prediction",
    "Record",
    "TimedOut",
    "Unreachable",
    "Version",
    "export",
    "verify_webhook",
]
