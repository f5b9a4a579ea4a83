"""Import: an uploaded file, opened in the sandbox → the first version of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.domain.specs import ImportSpec
from workers.load import sandbox
from workers.passes import Outcome

if TYPE_CHECKING:
    from workers.context import Context


def run(spec: ImportSpec, ctx: Context) -> Outcome:
    """Fetches the upload, lets the sandbox load it, and passes on what it found. Raises Problem."""
    ctx.progress(0, 1, phase="fetching")
    folder = ctx.folder("import")
    ctx.fetch_upload(spec.upload, folder / "upload")
    ctx.progress(0.2, 1, phase="loading")
    found = sandbox.run(
        "workers.load.upload:load",
        folder,
        {
            "file": "upload",
            **spec.model_dump(mode="json", include={"architecture", "signature", "task", "labels", "preprocess"}),
            "max_files": ctx.settings.max_archive_files,
            "max_bytes": ctx.settings.max_unpacked_bytes,
            "threads": ctx.threads,
        },
        ctx.settings,
    )
    notes = [str(note) for note in found["notes"]]
    for note in notes:
        ctx.log(note)
    weak = not found["isolation"].startswith(("namespaces", "landlock"))
    ctx.log(f"isolation: {found['isolation']}", "warning" if weak else "info")
    draft = {
        "format": found["format"],
        "signature": found["signature"],
        "parameters": found["parameters"],
        "macs": found.get("macs"),
        "sparsity": found["sparsity"],
        "metrics": {"layer_sparsity": found["layer_sparsity"]},
        "trainable": found["trainable"],
        "task": found.get("task"),
        "labels": found.get("labels"),
        "preprocess": found.get("preprocess"),
        "notes": notes,
        "details": found.get("details") or {},
    }
    report = {
        "filename": spec.filename,
        "bytes": spec.bytes,
        "sha256": spec.sha256,
        "found": found["kind"],
        "form": found.get("form"),
        "isolation": found["isolation"],
        "notes": notes,
    }
    return Outcome(folder=folder / "out", draft=draft, report=report)
