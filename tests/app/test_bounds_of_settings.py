"""Numbers that no setting can mean are refused when a process starts, not met in its work."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.settings import Settings

NUMBERS = [
    name for name, field in Settings.model_fields.items() if field.annotation in (int, float, int | None, float | None)
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", [-1, "nan", "inf"])
def test_no_setting_is_negative_or_endless(name: str, number: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: number})  # type: ignore[arg-type]
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


def test_every_number_is_looked_at() -> None:
    assert {"port", "lease_s", "sandbox_memory_bytes", "trace_ratio", "max_json_bytes"} <= set(NUMBERS)
