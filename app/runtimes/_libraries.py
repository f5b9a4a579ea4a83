"""Imports the libraries of the runtimes so that they tell their makers nothing, and bring little that is not used."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

_CONVERTER = "openvino.tools.ovc"
_turn = threading.Lock()


def onnxruntime() -> Any:
    """ONNX Runtime; without this it keeps a database of events in the home folder and sends them."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def openvino() -> Any:
    """OpenVINO, without two packages that it does without where they cannot be imported: its telemetry, for good, and
    its converter, which is 5 MB with the front end of TensorFlow that it loads, until `openvino_converter` is called.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    with _turn:
        if "openvino" in modules:
            return importlib.import_module("openvino")
        modules[_CONVERTER] = None
        try:
            return importlib.import_module("openvino")
        finally:
            del modules[_CONVERTER]


def openvino_converter() -> Callable[..., Any]:
    """OpenVINO's `convert_model`: a model of another framework, held in memory, to OpenVINO's own."""
    openvino()
    convert: Callable[..., Any] = importlib.import_module(_CONVERTER).convert_model
    return convert
