"""Lists: `?limit=&cursor=` in, `{"items", "next_cursor"}` out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

from app.api.body import Json

Limit = Annotated[int, Query(ge=1, le=500, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before")]


def page(items: list[Any], next_cursor: str | None) -> Json:
    return Json({"items": items, "next_cursor": next_cursor})
