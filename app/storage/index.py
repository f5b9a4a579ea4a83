"""The index in Redis of what exists: models with their versions and evaluations, and data sets. The store has all."""

from __future__ import annotations

import json
from typing import Any

from app.domain.records import Dataset, Version
from app.errors import NotFound
from app.storage import encoding
from app.storage.redis import PatientRedis


class Index:
    """Every call may raise Unavailable when Redis is gone for longer than the connection is patient."""

    def __init__(self, redis: PatientRedis) -> None:
        self.redis: Any = redis  # redis-py types every answer as "maybe awaitable, maybe bytes"

    def put_version(self, version: Version) -> None:
        self._put("model", version)

    def version(self, name: str, n: int) -> Version:
        """Raises NotFound."""
        held = self.redis.hget(f"es:model:{name}", str(n))
        if held is None:
            raise NotFound(
                f"no version {name}@{n}", code="version_not_found", hint=f"GET /v1/models/{name} lists its versions"
            )
        return Version.model_validate_json(held)

    def versions(self, name: str) -> list[Version]:
        """Ascending. Raises NotFound when there is no such model."""
        held = self.redis.hgetall(f"es:model:{name}")
        if not held:
            raise NotFound(f"no model {name!r}", code="model_not_found", hint="GET /v1/models lists them")
        return sorted((Version.model_validate_json(v) for v in held.values()), key=lambda v: v.version)

    def models(self, *, limit: int = 50, cursor: str | None = None) -> tuple[list[str], str | None]:
        return self._names("model", limit, cursor)

    def drop_version(self, name: str, n: int) -> None:
        self._drop("model", name, n)
        self.redis.delete(f"es:evaluations:{name}@{n}")

    def evaluations(self, ref: str) -> list[dict[str, Any]]:
        """The newest per baseline and data set."""
        return [json.loads(e) for _, e in sorted(self.redis.hgetall(f"es:evaluations:{ref}").items())]

    def put_evaluation(self, ref: str, evaluation: dict[str, Any]) -> None:
        place = f"{evaluation.get('baseline') or ''}|{evaluation.get('dataset') or ''}"
        self.redis.hset(f"es:evaluations:{ref}", place, json.dumps(evaluation))

    def put_dataset(self, dataset: Dataset) -> None:
        self._put("dataset", dataset)

    def dataset(self, name: str, n: int | None = None) -> Dataset:
        """The newest unless numbered. Raises NotFound."""
        if n is None:
            return self.dataset_versions(name)[-1]
        held = self.redis.hget(f"es:dataset:{name}", str(n))
        if held is None:
            raise NotFound(f"no data set {name}@{n}", code="dataset_not_found", hint="GET /v1/datasets lists them")
        return Dataset.model_validate_json(held)

    def dataset_versions(self, name: str) -> list[Dataset]:
        """Ascending. Raises NotFound."""
        held = self.redis.hgetall(f"es:dataset:{name}")
        if not held:
            raise NotFound(f"no data set {name!r}", code="dataset_not_found", hint="GET /v1/datasets lists them")
        return sorted((Dataset.model_validate_json(v) for v in held.values()), key=lambda d: d.version)

    def datasets(self, *, limit: int = 50, cursor: str | None = None) -> tuple[list[str], str | None]:
        return self._names("dataset", limit, cursor)

    def drop_dataset(self, name: str, n: int) -> None:
        self._drop("dataset", name, n)

    def _put(self, kind: str, record: Version | Dataset) -> None:
        self.redis.hset(f"es:{kind}:{record.name}", str(record.version), record.model_dump_json())
        self.redis.zadd(f"es:{kind}s", {record.name: 0})

    def _drop(self, kind: str, name: str, n: int) -> None:
        self.redis.hdel(f"es:{kind}:{name}", str(n))
        if not self.redis.exists(f"es:{kind}:{name}"):
            self.redis.zrem(f"es:{kind}s", name)

    def _names(self, kind: str, limit: int, cursor: str | None) -> tuple[list[str], str | None]:
        low = f"({encoding.parts_of(cursor)[0]}" if cursor else "-"
        names: list[str] = self.redis.zrangebylex(f"es:{kind}s", low, "+", start=0, num=limit + 1)
        return names[:limit], encoding.cursor_of(names[limit - 1]) if len(names) > limit else None
