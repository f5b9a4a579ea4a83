"""Bodies of /predict ↔ tensors: plain JSON, .npy, .npz and images, each checked against the signature."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from app.domain.records import Signature, Version
from app.domain.tensors import DTYPES, all_finite, check, wrong_names
from app.errors import BadTensor, NotAcceptable, UnsupportedMedia
from app.serving import arrays, json_numbers, json_tensors, predictions
from app.serving.accept import weighted

Kind = Literal["json", "npy", "npz", "image", "multipart"]
MEDIA: dict[str, Kind] = {
    "application/json": "json",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "image/jpeg": "image",
    "image/png": "image",
    "multipart/form-data": "multipart",
}
AS_FILES = "send images as files: -F file=@a.jpg -F file=@b.jpg"
ANSWERS = {"json": "application/json", "npy": "application/x-npy", "npz": "application/x-npz"}


class Asked(NamedTuple):
    """A request in hand. outputs: those to be answered, in order; all unless named."""

    inputs: dict[str, npt.NDArray[Any]]
    outputs: tuple[str, ...]
    top_k: int | None = None


def body_kind(content_type: str, version: Version) -> Kind:
    """What a body is, by its Content-Type. Raises UnsupportedMedia, which lists what this version takes."""
    kind = MEDIA.get(content_type.partition(";")[0].strip().lower())
    several = len(version.signature.inputs) > 1
    if kind in ("image", "multipart") and (several or version.preprocess is None):
        why = "has several inputs" if several else "has no preprocess"
        raise UnsupportedMedia(
            f"{version.ref} takes no images: it {why}", hint=f"send {' or '.join(_taken(version))} with the tensors"
        )
    if kind is None:
        said = f"not {content_type!r}" if content_type else "and there is no Content-Type"
        raise UnsupportedMedia(
            f"{version.ref} takes {', '.join(_taken(version))}, {said}", hint="set the header Content-Type"
        )
    return kind


def _taken(version: Version) -> list[str]:
    takes_images = version.preprocess is not None and len(version.signature.inputs) == 1
    return [media for media, kind in MEDIA.items() if takes_images or kind not in ("image", "multipart")]


def decode(
    kind: Kind, body: bytes, version: Version, *, limit: int, outputs: str | None = None, top_k: str | None = None
) -> Asked:
    """JSON, .npy or .npz → tensors that fit the signature. limit: bytes that an .npz may unpack to.

    outputs (with commas), top_k: from the query, for bodies that do not say it. Raises BadTensor, BadRequest.
    """
    signature = version.signature
    if kind == "json":
        if (numbers := json_numbers.read(body, signature)) is not None:
            asked = Asked(numbers.inputs, *_wanted(numbers.outputs, numbers.top_k, outputs, top_k, signature))
            if len(asked.inputs) > 1:
                check(signature, asked.inputs)
            return asked
        given = json_tensors.parse(body)
        asked = Asked(
            json_tensors.tensors(given["inputs"], signature),
            *_wanted(given.get("outputs"), given.get("top_k"), outputs, top_k, signature),
        )
    else:
        refuse_strings(signature)
        if kind == "npz":
            found = arrays.from_npz(body, {t.name for t in signature.inputs}, limit)
        elif len(signature.inputs) > 1:
            raise wrong_names(signature, set())
        else:
            found = {signature.inputs[0].name: arrays.from_npy(body)}
        asked = Asked(found, *_from_query(outputs, top_k, signature))
    if kind != "json" or len(asked.inputs) > 1:  # what is made of JSON fits its own tensor already
        check(signature, asked.inputs)
    for name, array in asked.inputs.items():
        require_finite(name, array)
    return asked


def _wanted(
    names: Any, number: Any, outputs: str | None, top_k: str | None, signature: Signature
) -> tuple[tuple[str, ...], int | None]:
    """What the body wants, else the query."""
    if outputs is None and top_k is None:
        return selected(names, signature), _top_k(number)
    asked_names, asked_number = _from_query(outputs, top_k, signature)
    return (
        asked_names if names is None else selected(names, signature),
        asked_number if number is None else _top_k(number),
    )


def decode_image(image: bytes, version: Version) -> npt.NDArray[Any]:
    """One encoded image → one row, through the version's preprocess. Raises BadTensor."""
    from app.intake import preprocess  # here: only versions for images need it

    return preprocess.apply(image, preprocess.parse(version.preprocess or {}))


def images_asked(
    rows: Sequence[npt.NDArray[Any] | BaseException],
    version: Version,
    *,
    outputs: str | None = None,
    top_k: str | None = None,
) -> Asked:
    """The rows of a request's images, or what decoding one raised instead, as one tensor. Raises that; BadTensor."""
    tensor = version.signature.inputs[0]
    good: list[npt.NDArray[Any]] = []
    for number, row in enumerate(rows):
        if isinstance(row, BadTensor) and len(rows) > 1:
            raise BadTensor(f"image {number}: {row.detail}", hint=row.hint, loc=("inputs", number))
        if isinstance(row, BaseException):
            raise row
        good.append(row)
    if not good:
        raise BadTensor("there is no image in the body", hint=AS_FILES)
    if len({row.shape for row in good}) != 1:
        shapes = sorted({str(list(row.shape)) for row in good})
        raise BadTensor(
            f"the images are of different sizes: {', '.join(shapes)}", hint="send images of one size, or one at a time"
        )
    array = good[0][None] if len(good) == 1 else np.stack(good)
    if DTYPES[tensor.dtype].kind == "f":
        array = array.astype(DTYPES[tensor.dtype], copy=False)
    found = {tensor.name: array}
    check(version.signature, found)
    return Asked(found, *_from_query(outputs, top_k, version.signature))


def answer_kind(accept: str | None, body: Kind, outputs: int) -> str:
    """json, npy or npz: the kind that Accept names with the highest weight, the first of equal ones; for a wildcard
    that of the request, if it may be. Raises NotAcceptable."""
    own = {"npy": "npy" if outputs == 1 else "npz", "npz": "npz"}.get(body, "json")
    ranges: dict[str, float] = {}
    for media, weight in weighted(accept or "*/*"):
        ranges.setdefault(media, weight)
    kinds = {media: kind for kind, media in ANSWERS.items()}
    refused: NotAcceptable | None = None
    for media, weight in sorted(ranges.items(), key=lambda r: -r[1]):  # stable: of equal ones the first
        if weight <= 0:
            break
        if media in kinds:
            possible = [kinds[media]]
        elif media in ("*/*", "application/*"):
            # Of several ranges that fit a kind, the one that says most decides.
            is_overruled = media == "*/*" and "application/*" in ranges
            possible = [] if is_overruled else [k for k in (own, *ANSWERS) if ANSWERS[k] not in ranges]
        else:
            continue
        for kind in possible:
            if kind != "npy" or outputs == 1:
                return kind
            refused = NotAcceptable(
                f"one .npy cannot hold {outputs} outputs", hint="Accept: application/x-npz, or ask for one output"
            )
    raise refused or NotAcceptable(
        f"no answer can be made as {accept!r}", hint=f"Accept one of {', '.join(ANSWERS.values())}"
    )


def encode(kind: str, outputs: Mapping[str, npt.NDArray[Any]], asked: Asked, version: Version) -> tuple[bytes, str]:
    """(body, Content-Type) of an answer. NaN and infinity become null in JSON."""
    chosen = {name: outputs[name] for name in asked.outputs}
    if kind == "npy":
        body = arrays.to_npy(next(iter(chosen.values())))
    elif kind == "npz":
        body = arrays.to_npz(chosen)
    else:
        told: dict[str, Any] = {"model": version.ref, "outputs": chosen}
        if version.labels and (best := predictions.top(outputs, version.labels, asked.top_k)) is not None:
            told["predictions"] = best
        body = orjson.dumps(told, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return body, ANSWERS[kind]


def _plain(value: Any) -> Any:
    """Arrays that orjson does not write itself: scalars, strings, views."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(type(value).__name__)


def refuse_strings(signature: Signature) -> None:
    """Raises BadTensor for a model that takes what .npy files hold only as pickles."""
    if names := [t.name for t in signature.inputs if t.dtype == "string"]:
        raise BadTensor(
            f"the inputs {names} take strings, which .npy and .npz hold only as pickles, and those are never read",
            hint="send them as application/json, or as BYTES under /v2",
            loc=("inputs", names[0]),
        )


def require_finite(name: str, array: npt.NDArray[Any]) -> None:
    """Raises BadTensor that says where the first NaN or infinity is."""
    if not all_finite(array):
        finite = np.isfinite(array)
        at = np.unravel_index(int(np.argmin(finite)), array.shape)
        what = "NaN" if np.isnan(array[at]) else "infinity"
        raise BadTensor(
            f"input {name!r} holds {what} at {[int(i) for i in at]}",
            hint="send finite numbers; a model that takes NaN for what is missing is asked by /v2, with binary tensors",
            code="not_finite",
            loc=("inputs", name),
        )


def selected(names: Any, signature: Signature) -> tuple[str, ...]:
    """The outputs asked for, or all. Raises BadTensor for one that is not there."""
    there = tuple(t.name for t in signature.outputs)
    if names is None:
        return there
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise BadTensor("outputs must be a list of names", hint=f"the model has {list(there)}", loc=("outputs",))
    if unknown := [n for n in names if n not in there]:
        raise BadTensor(f"the model has no outputs {unknown[:8]}", hint=f"it has {list(there)}", loc=("outputs",))
    return tuple(dict.fromkeys(names))


def _top_k(given: Any) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise BadTensor("top_k must be an integer of at least 1", hint="leave it out for the five best", loc=("top_k",))
    return given


def _from_query(outputs: str | None, top_k: str | None, signature: Signature) -> tuple[tuple[str, ...], int | None]:
    number = int(top_k) if top_k is not None and re.fullmatch("[0-9]{1,9}", top_k) else top_k
    return selected(outputs.split(",") if outputs is not None else None, signature), _top_k(number)
