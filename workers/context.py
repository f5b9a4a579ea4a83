"""What a pass is given: the job, a scratch folder, the device, and the ways to say how it goes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app import runtimes, tracing
from app.domain.records import Dataset, Job, Version, parse_ref
from app.errors import NotFound, Problem, Unprocessable
from app.settings import MiB, Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import fetch_files
from workers.report import Report

if TYPE_CHECKING:
    from workers.nn.data import Data

CHECKPOINTS_KEPT = 2
# Where trials share files, and the most that one may take, in bytes.
SHARED, SHARED_BYTES = "trials/shared", 64 * MiB


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
    # Of work in several stages: whose checkpoints these are. Nobody but the whole may cut the history then.
    stage: str = ""
    # Where versions and data sets are fetched to; None: the scratch folder.
    fetched: Path | None = None
    # Sees every row of the history as it comes, and may end the work by what it raises: the pruner of a search.
    watch: Callable[[dict[str, Any]], None] | None = None
    _sources: dict[str, tuple[Version, Path]] = field(default_factory=dict)

    def progress(self, done: float, total: float | None = None, unit: str = "", phase: str | None = None) -> None:
        """How far it is. Cheap: call it every step."""
        self.report.progress(done, total, unit, phase)

    def metrics(self, row: dict[str, Any]) -> None:
        """One row of the job's history: the figures of an epoch."""
        self.report.metrics(row)
        if self.watch is not None:
            self.watch(row)

    def log(self, text: str, level: str = "info") -> None:
        """A line that is seen through the API while the job runs."""
        self.report.line(text, level)

    def trials(self, names: Iterable[str] | None = None) -> dict[str, Job]:
        """The trials of this job by name, as they are now: all, or those of the names that there are."""
        return self.catalog.trials.of(self.job.id, names)

    def version(self, ref: str | None = None) -> Version:
        """The record of a version (the job's own unless named; of a model the newest). Raises NotFound."""
        ref = ref or self.job.model
        if ref is None:
            raise Unprocessable("this job names no model")
        if ref in self._sources:
            return self._sources[ref][0]
        name, number = parse_ref(ref)
        return self.catalog.version(name, number) if number else self.catalog.versions(name)[-1]

    def source(self, ref: str | None = None) -> tuple[Version, Path]:
        """A version (the job's own unless named) and a folder with its files, verified; of an engine that was built
        for another GPU, with a plan for the one that is here. Raises NotFound, and what building that plan raises."""
        version = self.version(ref)
        ref = ref or version.ref
        if ref not in self._sources:
            folder = (self.fetched or self.scratch) / "sources" / version.ref
            with tracing.span("fetch", what=version.ref):
                fetch_files(self.artifacts, version.folder, version.files, folder)
            self._sources[ref] = version, self.fitted(version, folder)
        return self._sources[ref]

    def fitted(self, version: Version, folder: Path) -> Path:
        """The folder, or for an engine that was built for another GPU one with a plan for the one that is here. Raises
        what building that plan raises."""
        if version.is_engine and runtimes.misfit(version.format, version.built_for or {}):
            from workers.plans import fitting

            return fitting(version, folder, self)
        return folder

    def dataset(self, ref: str | None = None) -> Data:
        """A data set (the job's own unless named), memory-mapped from the scratch folder. Raises NotFound."""
        from workers.nn.data import open_dataset

        return open_dataset(*self.dataset_files(ref))

    def dataset_files(self, ref: str | None = None) -> tuple[Dataset, Path]:
        """A data set (the job's own unless named) and a folder with its files, verified; without torch. Raises
        NotFound."""
        ref = ref or self.job.dataset
        if ref is None:
            raise Unprocessable("this job names no data set", hint='add "dataset": "name"')
        record = self.catalog.dataset(*parse_ref(ref))
        folder = (self.fetched or self.scratch) / "datasets" / record.ref
        if not folder.exists():
            with tracing.span("fetch", what=record.ref):
                fetch_files(self.artifacts, record.folder, record.files, folder)
        return record, folder

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
        self.artifacts.delete(*self._kept_checkpoints()[:-CHECKPOINTS_KEPT])

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(epoch, file) of the newest checkpoint that an earlier attempt left; its history is cut to that epoch."""
        for key in reversed(self._kept_checkpoints()):
            try:
                path = self.artifacts.fetch(key, self.scratch / "checkpoint")
            except NotFound:
                continue
            epoch = _age(key)[1]
            self._trim_history(epoch)
            return epoch, path
        self._trim_history(0)
        return None

    def _kept_checkpoints(self) -> list[str]:
        """Oldest first; those of stages below this one are theirs."""
        keys = self.artifacts.keys(self._checkpoints)
        return sorted((key for key in keys if key.rpartition("/")[0] == self._checkpoints), key=_age)

    def _trim_history(self, keep: int) -> None:
        if not self.stage:
            self.catalog.trim_history(self.job.id, keep)

    def staged(self, stage: str, **changes: Any) -> Context:
        """The context of one stage of several, or of one job of several done in this one: checkpoints and scratch of
        its own, everything else shared. Whoever works in stages trims the history itself."""
        within = f"{self.stage}/{stage}" if self.stage else stage
        given: dict[str, Any] = {"fetched": self.fetched or self.scratch, "scratch": self.folder(f"stage-{stage}")}
        return replace(self, stage=within, **(given | changes))

    def given(self, version: Version, folder: Path) -> None:
        """From here on `source` knows a version that is not published, by its ref."""
        self._sources[version.ref] = version, folder

    def recalled(self, path: Path) -> bool:
        """Whether another trial has made this very file already: then it is there now. Its name tells its content."""
        if self.job.parent is None:
            return False
        unfinished = path.with_suffix(".part")
        try:
            self.artifacts.fetch(f"{SHARED}/{path.name}", unfinished)
        except Problem:
            return False
        unfinished.rename(path)
        return True

    def share(self, path: Path) -> None:
        """Keeps a file for other trials, where it is not large; it is swept away as what trials keep is."""
        if self.job.parent is not None and path.stat().st_size <= SHARED_BYTES:
            with suppress(Problem):
                self.artifacts.put_file(path, f"{SHARED}/{path.name}")

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
        return f"checkpoints/{self.job.id}" + (f"/{self.stage}" if self.stage else "")


def _age(key: str) -> tuple[int, int]:
    attempt, _, epoch = key.rsplit("/", 1)[-1].partition("-")
    return int(attempt), int(epoch)
