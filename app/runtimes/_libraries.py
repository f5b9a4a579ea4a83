"""Imports the libraries of the runtimes so that they tell their makers nothing: both come with telemetry on."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def onnxruntime() -> Any:
    """ONNX Runtime; without this it keeps a database of events in the home folder and sends them."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def openvino() -> Any:
    """OpenVINO; where its telemetry package cannot be imported it uses an empty one of its own."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")
