"""Before it is queued: whether the rows and targets of a data set are what a model takes and gives."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.errors import Problem, Unprocessable

_FAMILIES = {"f": ("float16", "bfloat16", "float32", "float64"), "b": ("bool",)}


def check(version: Version, dataset: Dataset) -> None:
    """Raises Unprocessable `dataset_mismatch` with what to do about it."""
    inputs = version.signature.inputs
    if len(inputs) != 1:
        names = ", ".join(t.name for t in inputs)
        raise _mismatch(
            f"{version.ref} takes {len(inputs)} inputs ({names}), and a data set has one array",
            "leave out `dataset` where the job can do without: convert can",
        )
    tensor = inputs[0]
    _check_one_by_one(version, dataset)
    taken = _row_shape(tensor.shape, tensor.batch_axis)
    if not any(_shapes_fit(shape, dataset.x_shape) for shape in taken):
        raise _mismatch(
            f"{version.ref} takes rows of shape {_dims(taken[0])}, "
            f"and those of {dataset.ref} are {_dims(dataset.x_shape)}",
            _layout_hint(taken[0], dataset.x_shape),
        )
    if _family(tensor.dtype) != _family(dataset.x_dtype):
        raise _mismatch(
            f"{version.ref} takes {tensor.dtype}, and {dataset.ref} has {dataset.x_dtype}",
            f"upload x as {tensor.dtype}, scaled as the model was trained",
        )
    _check_targets_fit(version, dataset)


def _check_one_by_one(version: Version, dataset: Dataset) -> None:
    """A model without a batch of any size can be asked row after row where each run takes one row, and gives one."""
    tensor, outputs = version.signature.inputs[0], version.signature.outputs
    if version.signature.batched:
        return
    told = None
    if tensor.batch_axis is None and _shapes_fit(tensor.shape, dataset.x_shape):
        told = f"the input {tensor.name!r} of {version.ref} is {_dims(tensor.shape)}, without an axis for rows"
    elif tensor.batch_axis is None and tensor.shape[:1] != (1,):
        if _shapes_fit(tensor.shape[1:], dataset.x_shape):
            told = f"{version.ref} takes {tensor.shape[0]} rows a run, neither more nor fewer"
    elif outputs:
        output = next((t for t in outputs if t.name == "logits"), outputs[0])
        if output.shape and output.batch_axis is None and output.shape[0] != 1:
            told = f"the output {output.name!r} of {version.ref} is {_dims(output.shape)}, without an axis for rows"
    if told is not None:
        raise _mismatch(
            f"{told}: a data set cannot be fed to it",
            "upload the model with a first dimension of any size (-1 in its signature, a dynamic axis in its ONNX "
            "file), or of 1, in its inputs and outputs alike",
        )


def _check_targets_fit(version: Version, dataset: Dataset) -> None:
    if not version.signature.outputs:
        return
    output = version.signature.outputs[0]
    width = output.shape[-1] if len(output.shape) >= 2 else None
    if dataset.classes is not None:
        if width is not None and width > 1 and dataset.classes > width:
            raise _mismatch(
                f"{dataset.ref} has {dataset.classes} classes, and {version.ref} tells {width} apart",
                "a network with a wider last layer, or a data set with fewer classes",
            )
        if (
            version.labels
            and dataset.labels
            and version.labels != dataset.labels
            and set(version.labels) == set(dataset.labels)
        ):
            raise _mismatch(
                f"{version.ref} and {dataset.ref} have the same labels in another order",
                f"upload the data set with `labels`: {list(version.labels[:20])}",
            )
    elif len(dataset.y_shape) <= 1 and width is not None and width > 0:
        wanted = dataset.y_shape[0] if dataset.y_shape else 1
        if width != wanted:
            raise _mismatch(
                f"{dataset.ref} has {wanted} number{'s' if wanted > 1 else ''} a row to predict, "
                f"and {version.ref} gives {width}",
                "give y as integers if they are classes",
            )


def _row_shape(shape: tuple[int, ...], batch_axis: int | None) -> list[tuple[int, ...]]:
    """What one row may look like. A model of fixed batch 1 may not say that its first axis is one."""
    if batch_axis is not None:
        return [shape[:batch_axis] + shape[batch_axis + 1 :]]
    return [shape, shape[1:]] if shape[:1] == (1,) else [shape]


def _shapes_fit(wanted: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(wanted) == len(found) and all(w in (-1, f) for w, f in zip(wanted, found, strict=True))


def _layout_hint(wanted: tuple[int, ...], found: tuple[int, ...]) -> str:
    if len(wanted) == len(found) == 3 and _shapes_fit(wanted, (found[2], found[0], found[1])):
        return "the channels are last: x.transpose(0, 3, 1, 2)"
    if len(wanted) == len(found) == 3 and _shapes_fit(wanted, (found[1], found[2], found[0])):
        return "the channels are first: x.transpose(0, 2, 3, 1)"
    return "arrays are what the model takes, in its own layout"


def _family(dtype: str) -> str:
    return next((family for family, names in _FAMILIES.items() if dtype in names), "i")


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('any' if n == -1 else str(n) for n in shape)}]"


def _mismatch(detail: str, hint: str) -> Problem:
    return Unprocessable(
        detail, code="dataset_mismatch", hint=hint, errors=[{"loc": ["dataset"], "msg": "does not fit the model"}]
    )
