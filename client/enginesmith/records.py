"""What the service answers, as dicts whose keys are attributes too: `job.result.model` is `job["result"]["model"]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Record(dict[str, Any]):
    """A JSON object. `raw` is the same thing as plain JSON for whoever prefers it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}") from None

    @property
    def raw(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self))
        return found


class Job(Record):
    """One piece of work. Printed in short: `raw` is the whole."""

    id: str
    kind: str
    spec: Record
    model: str | None
    dataset: str | None
    status: str
    phase: str
    progress: Record
    metrics: Record
    history: list[Record]
    result: Record | None
    error: Record | None
    warnings: list[str]
    parent: str | None
    attempt: int

    def __repr__(self) -> str:
        made = (self.get("result") or {}).get("model")
        told = (self.get("kind"), self.get("model"), self.get("status"), f"→ {made}" if made else None)
        return f"<Job {self.get('id')}: {' '.join(str(part) for part in told if part)}>"

    @property
    def ended(self) -> bool:
        return self["status"] in ENDED


class Version(Record):
    """An immutable version of a model. Printed in short: `raw` is the whole."""

    ref: str
    name: str
    version: int
    format: str
    files: dict[str, str]
    bytes: int
    signature: Record
    parameters: int | None
    macs: int | None
    sparsity: float | None
    metrics: Record
    parent: str | None
    made_by: Record
    architecture: str | None

    def __repr__(self) -> str:
        quality = (self.get("metrics") or {}).get("quality")
        told = [self.get("format"), f"{self['parameters']:,} parameters" if self.get("parameters") else None]
        told += [f"{quality['name']} {quality['value']:.4f}" if quality else None, self.get("verdict")]
        return f"<Version {self.get('ref')}: {', '.join(str(part) for part in told if part)}>"


class Prediction(Record):
    """outputs: name → numpy array where arrays were sent, lists where JSON was.

    predictions: labels with scores, where the model has labels and the answer was JSON.
    """

    model: str | None
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One line of a job's life. type: state, progress, metrics or log."""

    id: str
    type: str
    data: Record


def parse(text: str | bytes) -> Any:
    """JSON whose objects are Records."""
    return json.loads(text, object_hook=Record)
