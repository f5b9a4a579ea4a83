"""The error for a name under which there is nothing."""

from __future__ import annotations

import re

from app.domain.records import NAME
from app.errors import NotFound

_NAME = re.compile(NAME)


def no_deployment(name: str) -> NotFound:
    """Only a name that could be one is said to be free to be made."""
    hint = (
        f"PUT /v1/deployments/{name} makes it" if _NAME.fullmatch(name) else "GET /v1/deployments lists those there are"
    )
    return NotFound(f"no deployment {name!r}", code="deployment_not_found", hint=hint)
