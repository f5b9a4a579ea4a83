"""Before it is queued: teachers, wherever a spec names one. They become exact refs, and must fit their student."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from app.domain.records import Dataset, Tensor, Version, parse_ref
from app.domain.specs import Spec, TrainSpec
from app.errors import NotFound, Problem, Unprocessable
from app.storage.catalog import Catalog

Place = tuple[str | int, ...]
_HINT = "a teacher is a version of the same inputs and outputs: one that this model came from, or a larger one"


def exact(stored: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The spec as data with the exact ref of every teacher. Raises NotFound, Unprocessable for what is no ref."""
    found = copy.deepcopy(stored)
    for place, ref in _places(stored):
        holder: Any = found
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = _version(ref, place, catalog).ref
    return found


def check(spec: Spec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises NotFound, and Unprocessable `teacher_mismatch` for a teacher of other inputs or outputs."""
    stored, warnings = spec.model_dump(mode="json"), []
    for place, ref in _places(stored):
        teacher = _version(ref, place, catalog)
        if version is not None and (found := _mismatch(teacher, version, dataset)):
            raise _refused(place, f"the teacher {teacher.ref} does not fit {version.ref}: {found}")
        if _alpha(stored, place) == 0:
            warnings.append(f"{teacher.ref} teaches nothing: `alpha` is 0")
    if isinstance(spec, TrainSpec) and spec.teacher is None:
        said = {n: getattr(spec, n) for n in ("temperature", "alpha") if n in spec.model_fields_set}
        idle = [n for n, value in said.items() if value != TrainSpec.model_fields[n].default]
        warnings += [f"`{name}` plays no part without a `teacher`" for name in idle]
    return warnings


def _places(stored: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Where a spec names teachers: itself, in `finetune`, in the links of a chain, among the choices of a space."""
    if isinstance(ref := stored.get("teacher"), str):
        yield ("teacher",), ref
    parts: list[tuple[Place, Any]] = [(("finetune",), stored.get("finetune"))]
    parts += [(("chain", i), link) for i, link in enumerate(stored.get("chain") or ())]
    for place, part in parts:
        if isinstance(part, dict):
            yield from ((place + inner, ref) for inner, ref in _places(part))
    for key, choices in (stored.get("space") or {}).items():
        field = key.rpartition(".")[2] if "." in key and isinstance(choices, list) else ""
        for i, choice in enumerate(choices if field in ("teacher", "finetune") else ()):
            if field == "teacher" and isinstance(choice, str):
                yield ("space", key, i), choice
            elif field == "finetune" and isinstance(choice, dict):
                yield from ((("space", key, i, *inner), ref) for inner, ref in _places(choice))


def _alpha(stored: dict[str, Any], place: Place) -> Any:
    """What stands beside a teacher; None in a space, where nothing does."""
    holder: Any = stored
    for step in place[:-1]:
        holder = holder[step]
    return holder.get("alpha") if isinstance(holder, dict) else None


def _version(ref: str, place: Place, catalog: Catalog) -> Version:
    try:
        name, number = parse_ref(ref)
    except ValueError as error:
        raise Unprocessable(str(error), errors=[{"loc": list(place), "msg": "is no reference"}]) from None
    try:
        return catalog.version(name, number) if number is not None else catalog.versions(name)[-1]
    except NotFound as gone:
        raise NotFound(
            f"the teacher {ref!r} is not here: {gone.detail}",
            code=gone.code,
            hint=gone.hint,
            errors=[{"loc": list(place), "msg": "is not here"}],
        ) from None


def _mismatch(teacher: Version, student: Version, dataset: Dataset | None) -> str | None:
    """Why a version cannot teach another; None where the records tell no reason."""
    ours, theirs = student.signature, teacher.signature
    if len(theirs.inputs) != 1:
        return f"it takes {len(theirs.inputs)} inputs, and training rows are one array"
    wanted = dataset.x_shape if dataset is not None else _row(ours.inputs[0])
    if not _alike(_row(theirs.inputs[0]), wanted):
        return f"it takes rows of shape {_dims(_row(theirs.inputs[0]))}, not {_dims(wanted)}"
    if ours.outputs and theirs.outputs:
        if len(theirs.outputs) != len(ours.outputs):
            return f"it has {_count(len(theirs.outputs))}, not {len(ours.outputs)}"
        told, learnt = _learnt(theirs.outputs), _learnt(ours.outputs)
        if "float" not in told.dtype:
            return f"its output {told.name!r} is {told.dtype}, and only numbers with fractions can be learnt from"
        if not _alike(_row(told), _row(learnt)):
            return f"it gives {_dims(_row(told))} per row, not {_dims(_row(learnt))}"
    return _other_labels(teacher, student, dataset)


def _other_labels(teacher: Version, student: Version, dataset: Dataset | None) -> str | None:
    for labels in (student.labels, dataset.labels if dataset is not None else None):
        if not teacher.labels or not labels or teacher.labels == labels:
            continue
        if set(teacher.labels) == set(labels):
            return "its labels are the same in another order"
        if labels == student.labels:
            return f"its labels are others: {_some(teacher.labels)} instead of {_some(labels)}"
    return None


def _learnt(outputs: tuple[Tensor, ...]) -> Tensor:
    """The output that counts: the one named logits, else the first."""
    return next((t for t in outputs if t.name == "logits"), outputs[0])


def _row(tensor: Tensor) -> tuple[int, ...]:
    """The shape of one row. A model of fixed batch 1 may not say that its first axis is one."""
    axis = 0 if tensor.batch_axis is None and tensor.shape[:1] == (1,) else tensor.batch_axis
    return tensor.shape if axis is None else tensor.shape[:axis] + tensor.shape[axis + 1 :]


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('any' if n == -1 else str(n) for n in shape)}]"


def _count(outputs: int) -> str:
    return "1 output" if outputs == 1 else f"{outputs} outputs"


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + (", …" if len(labels) > 3 else "")


def _refused(place: Place, detail: str) -> Problem:
    return Unprocessable(
        detail, code="teacher_mismatch", hint=_HINT, errors=[{"loc": list(place), "msg": "does not fit the model"}]
    )
