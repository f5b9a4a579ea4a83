"""convert with `refit`: plans whose weights can be exchanged, and engines of the same model to take one from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import runtimes
from app.domain.records import Version
from app.errors import Problem
from app.storage.registry import fetch_files
from workers.context import Context

_ABOUT = "build.json"


@dataclass
class Refittable:
    """Finds a plan by the key of its structure, which is in the details of its version. found: that version. why_not:
    why there is none."""

    ctx: Context
    model: str
    target: str
    found: Version | None = None
    why_not: str | None = None

    def __call__(self, key: str) -> Path | None:
        """None where there is no such plan, or it cannot be fetched."""
        suffix = runtimes.get(self.target).SUFFIX
        try:
            for version in reversed(self.ctx.catalog.versions(self.model)):
                if version.format == self.target and version.details.get("structure") == key:
                    plan = {name: sha256 for name, sha256 in version.files.items() if name.endswith(suffix)}
                    folder = self.ctx.folder("refittable")
                    fetch_files(self.ctx.artifacts, version.folder, plan, folder)
                    self.found = version
                    return folder / next(iter(plan))
            self.why_not = f"no earlier engine of {self.model} with `refit` has this structure and these options"
        except Problem as problem:  # deleted meanwhile, damaged, the store is away
            self.why_not = problem.detail
        self.ctx.log(f"no weights are exchanged, the engine is built: {self.why_not}")
        return None

    def told(self, folder: Path) -> dict[str, Any]:
        """For the details of the version in that folder. refitted_from: the version whose plan got its weights."""
        about = json.loads((folder / _ABOUT).read_text())["refit"]
        if about["why_not"]:
            self.why_not = about["why_not"]
            self.ctx.log(f"{about['why_not']}; the engine was built instead", "warning")
        taken = self.found.ref if about["done"] and self.found else None
        told = {"refit": True, "structure": about["structure"], "refitted_from": taken}
        return told | ({} if taken else {"not_refitted": self.why_not})


def notes(told: dict[str, Any]) -> list[str]:
    """For the report."""
    if not told:
        return []
    slower = "Its weights can be exchanged, for which TensorRT may have chosen slower kernels than without `refit`."
    taken = told["refitted_from"]
    if taken:
        return [f"The plan is that of {taken} with other weights: nothing was built.", slower]
    why = told.get("not_refitted")
    return [*([f"It was built, and no weights were exchanged: {why}."] if why else []), slower]
