"""The one vocabulary of errors: what an answer over HTTP and a failed job say (RFC 9457 problem bodies).

    Problem
    ├── BadRequest            400  the bytes are not what they claim to be
    ├── Unauthorized          401  no key, or an unknown one
    ├── Forbidden             403  the key lacks a scope
    ├── NotFound              404  no such model, version, dataset, job, deployment, file
    ├── MethodNotAllowed      405
    ├── NotAcceptable         406  no answer can be made in a kind that Accept names
    ├── RequestTimeout        408  a body that comes too slowly
    ├── Conflict              409  it exists, is in use, or cannot be done to this one
    ├── TooLarge              413  over a stated limit
    ├── UnsupportedMedia      415  a kind of file or body that is not taken
    ├── RangeNotSatisfiable   416  a range outside the file
    ├── Unprocessable         422  well-formed and wrong
    │   ├── BadCheckpoint          a file that is no loadable checkpoint
    │   ├── BadArchitecture        an architecture that is refused, or does not fit its weights
    │   ├── BadDataset             a data set with NaN, wrong shapes, labels out of range …
    │   └── BadTensor              a tensor of a prediction with a wrong name, dtype or shape
    ├── Overloaded            429  a queue is full; carries Retry-After
    ├── HeadersTooLarge       431  a request whose headers do not end
    ├── Internal              500  our fault
    │   ├── ParityError            an engine that disagrees with its source
    │   └── WorkerLost             an attempt whose process died, twice
    ├── NotSupported          501  a part of a protocol that is not served here
    ├── Unavailable           503  a part is broken or not there
    │   ├── PlanBuilding           an engine's plan for this kind of GPU is being built
    │   └── EngineLost             its device failed under an engine: a fresh one has to take its place
    │       └── DeviceLost         for good: only a fresh process can use the device again
    ├── DeadlineExceeded      504  the deadline passed while it waited
    └── InsufficientStorage   507  the disk is full

This file imports nothing but the standard library and runs on Python 3.10: the inference half of a runtime
needs it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error that a person or a program can act on.

    detail: what is wrong, with the figures. code: a stable word for programs. hint: what to do about it; that of the
    class unless there is a better one.
    errors: for a body that fails validation, `[{"loc": [...], "msg": "..."}]`. retryable: the same again may succeed.
    """

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal"
    default_hint: ClassVar[str] = "the service's log says more"
    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        retryable: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.hint = hint or self.default_hint
        self.errors = [dict(e) for e in errors]
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.headers = dict(headers or {})

    def body(self, instance: str | None = None) -> dict[str, Any]:
        """The RFC 9457 body. instance: the URL path or job it happened to."""
        found: dict[str, Any] = {
            "type": f"urn:enginesmith:problem:{self.code}",
            "title": title(self.status),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "hint": self.hint,
            "retryable": self.retryable,
        }
        if instance:
            found["instance"] = instance
        if self.errors:
            found["errors"] = self.errors
        return found


# The code of an Unavailable that says: sent again, the same request meets another engine.
TAKEN_DOWN = "shutting_down"


def title(status: int) -> str:
    """The standard phrase of an HTTP status, or "Error"."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def from_body(body: Mapping[str, Any]) -> Problem:
    """The Problem that `body()` came from: how one crosses a process or a store."""
    status = int(body.get("status", 500))
    kind = next((k for k in _tree(Problem) if k.default_code == body.get("code")), None)
    kind = kind or next((k for k in _tree(Problem) if "status" in vars(k) and k.status == status), Internal)
    return kind(
        str(body.get("detail", "")),
        code=body.get("code"),
        hint=body.get("hint"),
        errors=body.get("errors", ()),
        retryable=bool(body.get("retryable", False)),
    )


def _tree(kind: type[Problem]) -> list[type[Problem]]:
    return [s for child in kind.__subclasses__() for s in (child, *_tree(child))]


class BadRequest(Problem):
    status = 400
    default_code = "bad_request"
    default_hint = "send the body in the form that its Content-Type names; /docs has examples"


class Unauthorized(Problem):
    status = 401
    default_code = "unauthorized"
    default_hint = "send a key that the service knows, as Authorization: Bearer KEY"


class Forbidden(Problem):
    status = 403
    default_code = "forbidden"
    default_hint = "use a key with the scope, or have this one's scopes widened"


class NotFound(Problem):
    status = 404
    default_code = "not_found"
    default_hint = "/docs lists what there is, and the lists under /v1 name what exists"


class MethodNotAllowed(Problem):
    status = 405
    default_code = "method_not_allowed"
    default_hint = "the header Allow names the methods that are possible"


class NotAcceptable(Problem):
    status = 406
    default_code = "not_acceptable"
    default_hint = "Accept: application/json"


class RequestTimeout(Problem):
    status = 408
    default_code = "body_too_slow"
    default_hint = "send the whole body at once; a large one in smaller pieces, or over a faster connection"
    retryable_by_default = True


class Conflict(Problem):
    status = 409
    default_code = "conflict"
    default_hint = "look at how it stands now, with GET, and ask for what that allows"


class TooLarge(Problem):
    status = 413
    default_code = "too_large"
    default_hint = "send less at a time"


class UnsupportedMedia(Problem):
    status = 415
    default_code = "unsupported_media"
    default_hint = "/docs lists the kinds of body that are taken"


class RangeNotSatisfiable(Problem):
    status = 416
    default_code = "range_not_satisfiable"
    default_hint = "ask for bytes within the file, or leave Range out"


class Unprocessable(Problem):
    status = 422
    default_code = "invalid"
    default_hint = "/docs has every field with its bounds and an example"


class BadCheckpoint(Unprocessable):
    default_code = "bad_checkpoint"
    default_hint = "upload .safetensors, a state_dict saved by torch.save, TorchScript, .onnx, or a Hugging Face folder"


class BadArchitecture(Unprocessable):
    default_code = "bad_architecture"
    default_hint = "enginesmith.export(model, example) of the client describes a network as this service takes it"


class BadDataset(Unprocessable):
    default_code = "bad_dataset"
    default_hint = "mend the file, then upload it again"


class BadTensor(Unprocessable):
    """loc: where in the body it is wrong."""

    default_code = "bad_tensor"
    default_hint = "GET /v1/models/{name}/versions/{n} shows the `signature`: names, dtypes and shapes"

    def __init__(self, detail: str, *, loc: Sequence[str | int] = ("inputs",), **more: Any) -> None:
        super().__init__(detail, **({"errors": [{"loc": list(loc), "msg": detail}]} | more))


class Overloaded(Problem):
    status = 429
    default_code = "overloaded"
    default_hint = "try again after the seconds that Retry-After names"
    retryable_by_default = True


class HeadersTooLarge(Problem):
    status = 431
    default_code = "headers_too_large"
    default_hint = "send what is long in the body"


class Internal(Problem):
    status = 500
    default_code = "internal"
    default_hint = "try again; if it happens again, the service's log says more"


class ParityError(Internal):
    default_code = "parity_failed"


class WorkerLost(Internal):
    default_code = "worker_lost"
    retryable_by_default = True


class NotSupported(Problem):
    status = 501
    default_code = "not_supported"
    default_hint = "/docs lists what there is"


class Unavailable(Problem):
    status = 503
    default_code = "unavailable"
    default_hint = "try again in a few seconds; GET /healthz/ready says what is missing"
    retryable_by_default = True


class EngineLost(Unavailable):
    default_code = "engine_lost"
    default_hint = "send the request again in a moment: a fresh engine is being loaded"


class DeviceLost(EngineLost):
    default_code = "device_lost"
    default_hint = "send the request again in a moment: the process that runs engines is being started again"


class PlanBuilding(Unavailable):
    default_code = "plan_building"
    default_hint = "wait: the engine serves as soon as its plan is built"


class DeadlineExceeded(Problem):
    status = 504
    default_code = "deadline_exceeded"
    default_hint = "try again, or allow more time with X-Timeout-Ms"
    retryable_by_default = True


class InsufficientStorage(Problem):
    status = 507
    default_code = "insufficient_storage"
    default_hint = "free some space, then try again"
    retryable_by_default = True
