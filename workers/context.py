"""What a pass is given: the job, a scratch folder, the device, and the ways to say how it goes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app import tracing
from app.domain.records import Job, Version, parse_ref
from app.errors import NotFound, Unprocessable
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import fetch_files
from workers.report import Report

if TYPE_CHECKING:
    from workers.nn.data import Data

CHECKPOINTS_KEPT = 2


@dataclass
class Context:
    """One attempt at one job. `scratch` is empty at the start and gone at the end."""

    job: Job
    settings: Settings
    artifacts: Artifacts
    catalog: Catalog
    report: Report
    scratch: Path
    threads: int
    device: str = "cpu"
    seed: int = 0
    # What a version is judged by. A trial looks at `val` alone: `test` is for what was chosen.
    split: Literal["val", "test"] = "test"
    # Whether passes measure latency: of no interest for what is only a step on the way.
    times: bool = True
    _sources: dict[str, tuple[Version, Path]] = field(default_factory=dict)

    def progress(self, done: float, total: float | None = None, unit: str = "", phase: str | None = None) -> None:
        """How far it is. Cheap: call it every step."""
        self.report.progress(done, total, unit, phase)

    def metrics(self, row: dict[str, Any]) -> None:
        """One row of the job's history: the figures of an epoch."""
        self.report.metrics(row)

    def log(self, text: str, level: str = "info") -> None:
        """A line that is seen through the API while the job runs."""
        self.report.line(text, level)

    def source(self, ref: str | None = None) -> tuple[Version, Path]:
        """A version (the job's own unless named) and a folder with its files, verified. Raises NotFound."""
        ref = ref or self.job.model
        if ref is None:
            raise Unprocessable("this job names no model")
        if ref not in self._sources:
            name, n = parse_ref(ref)
            version = self.catalog.version(name, n) if n else self.catalog.versions(name)[-1]
            folder = self.scratch / "sources" / version.ref
            with tracing.span("fetch", what=version.ref):
                self._sources[ref] = version, fetch_files(self.artifacts, version.folder, version.files, folder)
        return self._sources[ref]

    def dataset(self, ref: str | None = None) -> Data:
        """A data set (the job's own unless named), memory-mapped from the scratch folder. Raises NotFound."""
        from workers.nn.data import open_dataset

        ref = ref or self.job.dataset
        if ref is None:
            raise Unprocessable("this job names no data set", hint='add "dataset": "name"')
        record = self.catalog.dataset(*parse_ref(ref))
        folder = self.scratch / "datasets" / record.ref
        if not folder.exists():
            with tracing.span("fetch", what=record.ref):
                fetch_files(self.artifacts, record.folder, record.files, folder)
        return open_dataset(record, folder)

    def fetch_upload(self, key: str, to: Path) -> Path:
        """The staged upload of an import. Raises NotFound."""
        with tracing.span("fetch", what=key):
            return self.artifacts.fetch(key, to)

    def checkpoint(self, state: bytes | Path, epoch: int) -> None:
        """Keeps the state after an epoch for a later attempt, and forgets all but the newest two."""
        key = f"{self._checkpoints}/{self.job.attempt}-{epoch:06d}"
        if isinstance(state, Path):
            self.artifacts.put_file(state, key)
        else:
            self.artifacts.put_bytes(state, key)
        self.artifacts.delete(*sorted(self.artifacts.keys(self._checkpoints), key=_age)[:-CHECKPOINTS_KEPT])

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(epoch, file) of the newest checkpoint that an earlier attempt left; its history is cut to that epoch."""
        for key in sorted(self.artifacts.keys(self._checkpoints), key=_age, reverse=True):
            try:
                path = self.artifacts.fetch(key, self.scratch / "checkpoint")
            except NotFound:
                continue
            epoch = _age(key)[1]
            self.catalog.trim_history(self.job.id, epoch)
            return epoch, path
        self.catalog.trim_history(self.job.id, 0)
        return None

    def clear_checkpoints(self) -> None:
        self.artifacts.delete_all(self._checkpoints)

    def folder(self, name: str) -> Path:
        """An empty folder in the scratch folder."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    @property
    def _checkpoints(self) -> str:
        return f"checkpoints/{self.job.id}"


def _age(key: str) -> tuple[int, int]:
    attempt, _, epoch = key.rsplit("/", 1)[-1].partition("-")
    return int(attempt), int(epoch)
