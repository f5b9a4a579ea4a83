"""What can go wrong for a client, each with what to do about it.

EnginesmithError
├── ApiError             the service refused: status, code, detail, hint, errors
│   ├── JobFailed        a job that was waited for failed or was cancelled; carries the job
│   └── DeploymentFailed a deployment that was waited for failed; carries it
├── OtherNetwork         a recipe was to be done again to a checkpoint of another architecture
├── BadSignature         what called a receiver of webhooks is not the service
├── Unreachable          nobody answers at that address
└── TimedOut             our own patience ended; the work goes on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from .records import Job, Record


class EnginesmithError(Exception):
    """The root of this tree. hint: what to do about it."""

    hint: str | None = None


class ApiError(EnginesmithError):
    """The service said no: an RFC 9457 problem body."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        raw: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.errors = [dict(e) for e in errors]
        self.raw = dict(raw or {})
        super().__init__(detail)

    @property
    def fields(self) -> list[str]:
        """One line per field that failed validation: `epochs: must be at least 1`."""
        return [f"{'.'.join(str(part) for part in e.get('loc', ()))}: {e.get('msg', '')}" for e in self.errors]

    def __str__(self) -> str:
        said = [f"{self.detail} ({self.status} {self.code})", *(f"  {line}" for line in self.fields)]
        if self.hint:
            said.append(f"  hint: {self.hint}")
        return "\n".join(said)


class JobFailed(ApiError):
    """A job ended as failed or cancelled. job: the record of it."""

    def __init__(self, job: Job) -> None:
        body: Mapping[str, Any] = job.get("error") or {}
        is_cancelled = job["status"] == "cancelled"
        why = body.get("detail") or (None if is_cancelled else "no reason was given")
        super().__init__(
            int(body.get("status", 409)),
            str(body.get("code", job["status"])),
            f"job {job['id']} ({job['kind']}) {'was ' if is_cancelled else ''}{job['status']}"
            + (f": {why}" if why else ""),
            hint=body.get("hint") or (f"enginesmith jobs retry {job['id']} runs it again" if is_cancelled else None),
            errors=body.get("errors") or (),
            raw=body,
        )
        self.job = job


class DeploymentFailed(ApiError):
    """A deployment could not be loaded. deployment: the record of it."""

    def __init__(self, deployment: Record) -> None:
        error = deployment.get("error")
        body: Mapping[str, Any] = error if isinstance(error, Mapping) else {"detail": error}
        super().__init__(
            int(body.get("status", 500)),
            str(body.get("code", "failed")),
            f"deployment {deployment.get('name')} of {deployment.get('model')} failed: "
            f"{body.get('detail') or 'no reason was given'}",
            hint=body.get("hint"),
            raw=body,
        )
        self.deployment = deployment


class OtherNetwork(EnginesmithError):
    """A recipe fits checkpoints of one architecture. differences: what differs, a line each."""

    def __init__(self, detail: str, differences: Sequence[str] = ()) -> None:
        self.differences = list(differences)
        super().__init__("\n  ".join([detail, *self.differences]))
        self.hint = "a recipe is done again to another checkpoint of the same architecture"


class BadSignature(EnginesmithError):
    """Not signed with the secret of the webhook, or too long ago: answer 400, and do nothing with it."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.hint = hint


class Unreachable(EnginesmithError):
    """No connection, also after the retries."""

    def __init__(self, url: str, cause: Exception) -> None:
        super().__init__(f"cannot reach {url}: {cause or type(cause).__name__}")
        self.url = url
        self.hint = "start the service with `enginesmith serve`, or name another with --url or ENGINESMITH_URL"


class TimedOut(EnginesmithError):
    """What was waited for had not ended in time. It goes on; wait again, or cancel it."""


def from_response(response: httpx.Response) -> ApiError:
    """The error that an answer of 4xx or 5xx stands for; the body must have been read."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    # `error` is how the /v2 routes say it; text is what a proxy in between may say.
    detail = body.get("detail") or body.get("error") or response.text[:500].strip() or response.reason_phrase
    errors = body.get("errors")
    return ApiError(
        response.status_code,
        str(body.get("code") or f"http_{response.status_code}"),
        str(detail),
        hint=body.get("hint"),
        errors=[e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else (),
        raw=body,
    )
