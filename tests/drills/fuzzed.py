"""What a sandboxed child does for tests/drills/test_fuzz.py: one wrong file after the other, until its time is over."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from mutating import mutated, mutated_tree


def loads(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Loads changed uploads as an import does. arguments: seeds (a folder here: files, and `.json` beside each with the
    other arguments), tree (what to change: the architecture, else the file), seed, seconds.

    Answers how many ended how, and the slowest, in seconds. `now` and `now.json` in the folder are what was tried last.
    """
    from workers.load import upload

    rng = random.Random(arguments["seed"])
    seeds = [
        (path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))
        for path in sorted((folder / "seeds").glob("*.bin"))
    ]
    files = [file for file, _ in seeds]
    ends: Counter[str] = Counter()
    slowest, until = 0.0, time.monotonic() + arguments["seconds"]
    while time.monotonic() < until:
        file, given = rng.choice(seeds)
        if arguments["tree"]:
            given = given | {"architecture": mutated_tree(given["architecture"], rng)}
        else:
            file = mutated(file, files, rng)
        (folder / "now").write_bytes(file)
        (folder / "now.json").write_text(json.dumps(given))
        began = time.monotonic()
        ends[
            _end(upload.load, folder, {"file": "now", "max_files": 1000, "max_bytes": 2**28, "threads": 1} | given)
        ] += 1
        slowest = max(slowest, time.monotonic() - began)
        for left in folder.iterdir():
            if left.name not in ("seeds", "now", "now.json"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return {"ends": ends, "slowest_s": slowest, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _end(load: Any, folder: Path, arguments: dict[str, Any]) -> str:
    from app.errors import Problem

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            json.dumps(load(folder, arguments), allow_nan=False)
    except Problem as problem:
        return problem.code
    except Exception as error:
        return type(error).__name__  # told as "it could not be loaded"
    return "loaded"
