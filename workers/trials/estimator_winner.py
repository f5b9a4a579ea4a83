"""The role `estimator_winner`: fits the winner of a search to the whole training split and makes it an ONNX model."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.base import is_classifier
from threadpoolctl import threadpool_limits

from app.domain.estimators import class_path
from app.domain.records import Dataset, Made, Metrics, Parity, Quality, Signature, now
from app.domain.specs import TrialSpec
from app.errors import ParityError, Unprocessable
from workers.arrays import open_split
from workers.context import Context
from workers.nn.quality import Answers, quality
from workers.passes import Outcome
from workers.search.onnx_parity import APART, TOLERANCE, ask, compare
from workers.search.scikit import make
from workers.search.skl_onnx import NotWritten, numbers, write
from workers.trials import kept
from workers.trials.estimator import Array, flat, set_threads

MODEL = "model.onnx"
# Rows for the comparison with scikit-learn itself.
_COMPARED = 2000


class WinnerTrial(BaseModel):
    """What a trial of this role is asked. params: fixed ones; candidate: those that won."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    estimator: str
    params: dict[str, Any] = {}
    candidate: dict[str, Any]
    seed: int = 0


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """The report's `kept`: where a version of format onnx lies; `values.quality`: on the test split, which nothing has
    looked at before. Raises Unprocessable where it cannot be fitted, or not written as ONNX; ParityError."""
    asked = WinnerTrial.model_validate(spec.model_dump())
    record, folder = ctx.dataset_files()
    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "skl2onnx")}
    key = kept.key_of(role=spec.role, data=kept.content_of(record), **asked.model_dump(mode="json"), versions=versions)
    if (before := kept.find(ctx.artifacts, key)) is not None:
        return Outcome(None, {}, before.report | {"cache_hit": True})
    began = time.perf_counter()
    estimator, told = _fitted(asked, record, *_floats(*open_split(record.splits["train"], folder).rows()), ctx)
    fit_s = time.perf_counter() - began
    ctx.progress(0, None, phase="writing ONNX")
    model, signature = _written(estimator, record)
    made = ctx.folder("version")
    (made / MODEL).write_bytes(model.SerializeToString())
    ctx.progress(0, None, phase="measuring accuracy")
    x, y = open_split(record.splits["test"], folder).rows()
    outputs = ask(model, signature, x, ctx.threads)
    parity = _parity(estimator, signature, x, outputs)
    measured = quality(_answers(signature, outputs, y), record.ref, "test")
    own = float(estimator.score(*_floats(x, y)))
    details = {
        "estimator": asked.estimator,
        "params": asked.params | asked.candidate,
        "seed": asked.seed,
        "class": type(estimator).__name__,
        "versions": versions,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        **_size(estimator),
    }
    report = {
        "kept": key, "cache_hit": False, "values": {"quality": measured.value},
        "quality": measured.model_dump(mode="json"), "parity": parity.model_dump(mode="json"),
        "estimator_test_score": own, "fit_s": round(fit_s, 3), "bytes": (made / MODEL).stat().st_size,
        "details": details, "notes": [*told, *_notes(asked, record, signature, measured, own)],
    }  # fmt: skip
    draft = {
        "name": "winner", "version": 1, "format": "onnx", "created_at": now(),
        "made_by": Made(job=ctx.job.id, spec=spec.model_dump(mode="json")),
        "signature": signature, "parameters": numbers(model), "sparsity": None,
        "metrics": Metrics(quality=measured, parity=parity), "trainable": False,
        "task": "regression" if record.classes is None else "classification",
        "labels": record.labels, "preprocess": record.preprocess, "details": details,
        "notes": ("an estimator of scikit-learn: it can be converted to onnxruntime; it cannot be trained or pruned",),
    }  # fmt: skip
    kept.keep(ctx.artifacts, key, f"{ctx.job.id}-{ctx.job.attempt}", made, draft, report)
    return Outcome(None, {}, report)


def _floats(x: Array, y: Array) -> tuple[Array, Array]:
    """float32, as the engine will get them: thresholds that were learnt between two values then lie between them."""
    rows, targets = flat(x, y)
    return np.ascontiguousarray(rows, np.float32), targets


def _fitted(asked: WinnerTrial, record: Dataset, x: Array, y: Array, ctx: Context) -> tuple[Any, list[str]]:
    ctx.progress(0, None, phase="fitting the winner")
    estimator = make(class_path(asked.estimator, record), asked.params | asked.candidate, asked.seed)
    set_threads(estimator, x, ctx.threads)
    with warnings.catch_warnings(record=True) as told, threadpool_limits(ctx.threads):
        warnings.simplefilter("always")
        try:
            estimator.fit(x, y)
        except Exception as error:  # a fit may raise whatever it likes
            raise Unprocessable(
                f"{type(estimator).__name__} cannot be fitted to {record.ref}: {' '.join(str(error).split())[:300]}",
                code="fit_failed",
                hint="mend `space` or `params` by what scikit-learn says",
            ) from error
    set_threads(estimator, x, None)
    lines = dict.fromkeys(f"{w.category.__name__}: {' '.join(str(w.message).split())[:200]}" for w in told)
    return estimator, list(lines)[:3]


def _written(estimator: Any, record: Dataset) -> tuple[Any, Signature]:
    dtype = "float32" if "float" in record.x_dtype else record.x_dtype
    values = record.y_shape[0] if record.y_shape else 1
    classes = record.classes if is_classifier(estimator) else None
    try:
        return write(estimator, record.x_shape, dtype, classes, values)
    except NotWritten as error:
        raise Unprocessable(
            f"{type(estimator).__name__} won, and cannot be written as ONNX with its parameters: {error}",
            code="not_convertible",
            hint="leave the value that is named out of `space`",
        ) from error


def _parity(estimator: Any, signature: Signature, x: Array, outputs: dict[str, Array]) -> Parity:
    """The ONNX model against the estimator itself on rows of the test split. Raises ParityError."""
    rows = _floats(x[:_COMPARED], np.zeros(min(len(x), _COMPARED)))[0]
    found = compare(estimator, signature, rows, {name: given[: len(rows)] for name, given in outputs.items()})
    if found.apart > APART:
        raise ParityError(
            f"the ONNX model and {type(estimator).__name__} disagree by more than {TOLERANCE:g} on "
            f"{found.apart:.1%} of {len(rows)} rows, by {found.worst:.3g} at most",
            hint="this is the converter's: choose another estimator or other parameters",
        )
    return Parity(
        n=len(rows),
        max_abs_diff=found.worst,
        max_rel_diff=found.worst / found.scale,
        tolerance=TOLERANCE,
        agreed=found.agreed,
    )


def _answers(signature: Signature, outputs: dict[str, Array], y: Array) -> Answers:
    """As every engine is judged: by the arg-max of the scores, or by the numbers."""
    given = outputs[signature.outputs[0].name]
    if signature.outputs[0].name == "prediction":
        return Answers("r2", y.astype(np.float64), values=given.astype(np.float64).reshape(y.shape))
    return Answers("accuracy", y, right=np.asarray(given.argmax(1) == y))


def _size(estimator: Any) -> dict[str, int]:
    """How large the fitted estimator is, in its own terms."""
    found: dict[str, int] = {}
    trees = [t for t in np.ravel(getattr(estimator, "estimators_", [])) if hasattr(t, "tree_")]
    trees = [estimator] if hasattr(estimator, "tree_") else trees
    if trees:
        found = {"trees": len(trees), "nodes": sum(int(t.tree_.node_count) for t in trees)}
    elif grown := getattr(estimator, "_predictors", None):
        flat_trees = [t for step in grown for t in step]
        found = {"trees": len(flat_trees), "nodes": sum(len(t.nodes) for t in flat_trees)}
    if (supports := getattr(estimator, "support_", None)) is not None:
        found["support_vectors"] = len(supports)
    if (rows := getattr(estimator, "n_samples_fit_", None)) is not None:
        found["kept_rows"] = int(rows)
    return found


def _notes(asked: WinnerTrial, record: Dataset, signature: Signature, measured: Quality, own: float) -> list[str]:
    found = []
    if len(record.x_shape) != 1:
        found.append(f"Rows of shape {list(record.x_shape)} are flattened, by the ONNX graph itself.")
    if asked.estimator == "knn":
        found.append("The model holds every row of the training split: whoever has its file has them.")
    if signature.outputs[0].name == "scores":
        found.append("It knows no probabilities: `scores` are those of its decision function; /predict takes softmax.")
    if abs(own - measured.value) > 1e-6:
        found.append(f"scikit-learn itself scores {own:.4f} on the test split, the ONNX model {measured.value:.4f}.")
    return found
