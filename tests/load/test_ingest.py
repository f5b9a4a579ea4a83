"""The pass `import`, from a staged upload to the files and fields of a version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from enginesmith import export
from networks import SimpleCNN

from app.confinement.fences import Level
from app.domain.records import Job, Version, now
from app.domain.specs import ImportSpec
from app.errors import Problem
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from workers import net
from workers.context import Context
from workers.passes import Outcome, apply
from workers.report import Report

Bring = Callable[..., Outcome]


@pytest.fixture
def bring(settings: Settings, artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> Iterator[Bring]:
    """Stages bytes and imports them."""
    reports: list[Report] = []

    def run(content: bytes, **fields: Any) -> Outcome:
        artifacts.put_bytes(content, "staging/1/upload.bin")
        spec = ImportSpec(
            name="digits",
            upload="staging/1/upload.bin",
            filename="upload.bin",
            sha256="0" * 64,
            bytes=len(content),
            **fields,
        )
        job = catalog.add(Job(id=f"j{len(reports)}", kind="import", spec=spec.model_dump(), created_at=now()))
        report = Report(catalog, job.id, 1)
        reports.append(report)
        scratch = tmp_path / job.id
        scratch.mkdir()
        return apply(spec, Context(job, settings, artifacts, catalog, report, scratch, threads=1))

    yield run
    for report in reports:
        report.close()


def test_import(bring: Bring) -> None:
    model = SimpleCNN().eval()
    exported = export(model, torch.randn(1, 1, 28, 28))
    labels = [str(n) for n in range(10)]
    outcome = bring(
        exported.weights,
        architecture=exported.architecture,
        signature=exported.signature,
        labels=labels,
        task="image-classification",
        preprocess={"channels": 1, "resize": [28, 28]},
    )
    assert outcome.folder is not None
    files = {p.name: "0" * 64 for p in outcome.folder.iterdir()}
    version = Version.model_validate(
        {"name": "digits", "version": 1, "folder": "f", "files": files, "bytes": 1, "created_at": now()}
        | {"made_by": {"job": "j", "spec": {}}}
        | outcome.draft
    )
    assert (version.format, version.trainable, version.labels) == ("torch", True, tuple(labels))
    assert version.signature.batched
    assert list(version.metrics.layer_sparsity) == ["conv1", "conv2", "fc1", "fc2"]
    found = net.load(outcome.folder, version)
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(found.module(x), model(x))
    assert found.labels == tuple(labels)
    assert outcome.report["found"] == "safetensors"
    assert outcome.report["form"] == "graph"
    assert outcome.report["isolation"].partition(":")[0] in get_args(Level)
    net.save(found, outcome.folder.parent / "again")
    assert sorted(p.name for p in (outcome.folder.parent / "again").iterdir()) == sorted(files)


def test_a_refusal_reaches_the_job_as_it_was_said(bring: Bring) -> None:
    with pytest.raises(Problem) as caught:
        bring(b"not a checkpoint at all")
    assert caught.value.hint
    assert not caught.value.retryable
