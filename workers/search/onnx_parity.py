"""Whether an ONNX model answers as the estimator of scikit-learn that it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.runtimes import _libraries

Array = npt.NDArray[Any]
# Largest |ONNX - scikit-learn| ÷ max(1, max |scikit-learn|) of a row that counts as equal.
TOLERANCE = 1e-4
# The share of rows that may differ by more: in float32 a row can come to lie on the other side of a border.
APART = 0.01
_BATCH = 1024


@dataclass(frozen=True)
class Compared:
    """worst: the largest difference; scale: what it is measured on; apart: the share of rows beyond the tolerance;
    agreed: that of equal labels, of a classifier."""

    worst: float
    scale: float
    apart: float
    agreed: float | None


def ask(model: Any, signature: Signature, x: Array, threads: int) -> dict[str, Array]:
    """What an onnx.ModelProto answers to rows in the data set's own layout."""
    ort = _libraries.onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [t.name for t in signature.outputs]
    dtype = np.dtype(signature.inputs[0].dtype)
    parts = [
        session.run(names, {signature.inputs[0].name: np.ascontiguousarray(x[at : at + _BATCH], dtype)})
        for at in range(0, len(x), _BATCH)
    ]
    return {name: np.concatenate([part[n] for part in parts]) for n, name in enumerate(names)}


def compare(estimator: Any, signature: Signature, rows: Array, outputs: dict[str, Array]) -> Compared:
    """rows: (n, values) float32, what the estimator was fitted to. outputs: the model's answers to them."""
    name = signature.outputs[0].name
    have = outputs[name].astype(np.float64)
    agreed: float | None = None
    if name == "prediction":
        wanted = np.asarray(estimator.predict(rows), np.float64)
    else:
        wanted = _scores(estimator, rows)
        agreed = float((outputs["label"] == estimator.predict(rows)).mean())
        have = have[:, estimator.classes_]
    wanted = wanted.reshape(len(rows), -1)
    if have.shape != wanted.shape or not np.isfinite(have).all():
        return Compared(1e300, 1.0, 1.0, agreed)
    each = np.abs(have - wanted).max(axis=1)
    scale = max(1.0, float(np.abs(wanted).max()))
    return Compared(float(each.max()), scale, float((each > TOLERANCE * scale).mean()), agreed)


def _scores(estimator: Any, rows: Array) -> Array:
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(rows), np.float64)
    found = np.asarray(estimator.decision_function(rows), np.float64)
    return np.stack([-found, found], 1) if found.ndim == 1 else found
