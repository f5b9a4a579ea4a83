"""The process that reads one data set: native decoders work on strangers' bytes here, apart from the app's requests.

stdin: {file, folder, scratch, manifest, max_bytes, max_files, limits, parent}; stdout: a line that says which fences
stand around it, then {draft} or {problem}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from app.confinement import child
from app.confinement.fences import Limits, confine


def main() -> None:
    asked = json.load(sys.stdin)
    fences = confine(
        Path(asked["scratch"]),
        Limits(**asked["limits"]),
        parent=asked["parent"],
        readable=[*child.code(), Path(asked["file"])],
        listed=child.names(),
    )
    os.write(1, json.dumps(fences.data()).encode() + b"\n")
    _read(asked)


def _read(asked: dict[str, Any]) -> None:
    # Imported behind the fences: numpy starts threads.
    from app.errors import Internal, Problem
    from app.intake.draft import Intake
    from app.intake.manifest import DatasetManifest
    from app.intake.read import read_dataset

    warnings.simplefilter("ignore")
    try:
        given = Intake(
            file=Path(asked["file"]),
            folder=Path(asked["folder"]),
            scratch=Path(asked["scratch"]),
            manifest=DatasetManifest.model_validate(asked["manifest"]),
            max_bytes=asked["max_bytes"],
            max_files=asked["max_files"],
        )
        answer: dict[str, Any] = {"draft": read_dataset(given)}
    except Problem as problem:
        answer = {"problem": problem.body()}
    except Exception as error:
        traceback.print_exc()
        answer = {"problem": Internal(f"reading the data set failed: {type(error).__name__}").body()}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
