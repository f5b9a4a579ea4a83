"""Hints of the service name its HTTP routes and fields; whoever types commands reads commands."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

_NAME = r"[A-Za-z0-9{][A-Za-z0-9._{}-]*[A-Za-z0-9}]|[A-Za-z0-9]"
_JOB = re.compile(r"POST /v1/jobs (\{[^{}]*\})")
_ROUTES = [
    (rf"POST /v1/jobs/({_NAME})/(retry|cancel)", r"enginesmith jobs \2 \1"),
    (r"GET /v1/jobs\?parent= this job", "enginesmith jobs list --parent JOB"),
    (r"GET /v1/jobs/kinds", "enginesmith kinds"),
    (rf"GET /v1/jobs/({_NAME})/report", r"enginesmith report \1"),
    (rf"GET /v1/jobs/({_NAME})", r"enginesmith jobs show \1"),
    (r"GET /v1/jobs", "enginesmith jobs list"),
    (r"POST /v1/jobs", "enginesmith jobs submit"),
    (rf"GET /v1/models/({_NAME})/versions/({_NAME})", r"enginesmith models \1@\2"),
    (rf"GET /v1/models/({_NAME})", r"enginesmith models \1"),
    (r"GET /v1/models", "enginesmith models"),
    (r"POST /v1/models", "enginesmith push"),
    (r"GET /v1/datasets", "enginesmith datasets"),
    (r"POST /v1/datasets", "enginesmith dataset"),
    (rf"DELETE /v1/deployments/({_NAME})", r"enginesmith delete \1 --deployment"),
    (rf"PUT /v1/deployments/({_NAME})", r"enginesmith deploy \1 MODEL"),
    (rf"GET /v1/deployments/({_NAME})", r"enginesmith deployments \1"),
    (r"GET /v1/deployments", "enginesmith deployments"),
]
_FIELD = re.compile(r'"(force|max_batch|precision|target|alpha|dry_run)": ("?)([\w.-]+)\2')
# Fields whose option has another name.
_OPTIONS = {
    "layers": "--layer", "objectives": "--objective", "params": "--param", "passes": "--pass", "targets": "--target",
    "time_limit_s": "--time-limit", "space": "--space", "teacher": "--teacher", "tolerance": "--tolerance",
    "buckets": "--bucket", "workspace_bytes": "--workspace-bytes", "optimization_level": "--optimization-level",
}  # fmt: skip


def in_commands(text: str) -> str:
    """`GET /v1/models lists them` → `enginesmith models` lists them; "force": true → --force."""
    text = _JOB.sub(_submitted, text)
    for route, command in _ROUTES:
        text = re.sub(route, f"`{command}`", text)
    text = _FIELD.sub(lambda m: f"--{m[1].replace('_', '-')}" + ("" if m[3] == "true" else f" {m[3]}"), text)
    text = re.sub(r"`(\w+)`", lambda m: f"`{_OPTIONS.get(m[1], m[1])}`", text)
    return text.replace(
        "mend the fields that `errors` names; /docs shows what each takes",
        "mend what is named above; the command with --help shows what each option takes",
    )


def _submitted(found: re.Match[str]) -> str:
    try:
        spec: dict[str, Any] = json.loads(found[1])
        words = [spec.pop("kind"), spec.pop("model")]
    except (ValueError, KeyError):
        return found[0]
    options = [f"--{name.replace('_', '-')} {value}" for name, value in spec.items()]
    return f"`enginesmith {' '.join([*words, *options])}`"


def meant(message: str, words: Sequence[str]) -> str | None:
    """Of the choices that a message names in quotes, the one that a word of the command line comes near."""
    choices = re.findall(r"'([^']+)'", message)
    for word in words:
        said = word.rpartition("=")[2]
        if said not in choices and (near := difflib.get_close_matches(said, choices, 1, 0.75)):
            return str(near[0])
    return None
