"""The closed loop on real networks, beside what one could do by hand with the same data and budget.

    python benchmarks/compression.py [--tasks digits,mnist] [--seeds 0,1,2] [--shared ../shared/data] [--out FOLDER]
        [--work FOLDER [--again]]

Each task runs in a service of its own, with a worker for each core: the network is uploaded, trained where it comes
without weights, and given to an `optimize` job. Then the rivals are made, through the same service where they are jobs.
All of them, torch eager too, are measured in turns in one process, with equal threads: one, then one for each core.
Accuracies are those of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginesmith import Client

from app.domain.records import Version
from benchmarks.compressing.rivals import rivals
from benchmarks.compressing.tasks import Arrays, Task, tasks
from demo.service import service
from workers.context import Context
from workers.trials.speed import race

ROOT = Path(__file__).resolve().parents[1]
EAGER, OURS = "torch eager", "optimize"
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Alone:
    """What a race asks of a job's context, where there is no job."""

    threads: int

    def progress(self, *_: Any, **__: Any) -> None:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default="digits")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, help="where to keep what is made")
    parser.add_argument("--again", action="store_true", help="only measure what lies in --work, on a quieter machine")
    given = parser.parse_args()
    known = tasks(given.shared)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.tasks.split(","):
            if name not in known:
                print(f"skipped {name}: it needs checkpoints that are not here", flush=True)
                continue
            for seed in given.seeds.split(","):
                folder = (given.work or Path(temporary)) / f"{name}-{seed}"
                if not given.again:
                    make(known[name], int(seed), folder)
                results.append(raced(folder))
                print(told(results[-1]), flush=True)
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "compression.json").write_text(json.dumps(results, indent=1))
                (given.out / "compression.txt").write_text("\n".join(map(told, results)))
    return 0


def make(task: Task, seed: int, folder: Path) -> None:
    """Everything of one task with one seed, but for the race: engines, and `made.json` about them."""
    folder.mkdir(parents=True, exist_ok=True)
    with service(workers=CORES) as (url, _):
        found = _made(task, task.arrays(), Client(url), folder, seed)
    (folder / "made.json").write_text(json.dumps(found))


def raced(folder: Path) -> dict[str, Any]:
    """What was made, measured: the service has ended, and nothing else should run meanwhile."""
    found: dict[str, Any] = json.loads((folder / "made.json").read_text())
    rows, batches = found["rows"], sorted({1, *map(int, found["aims"])})
    contestants = {name: (Version.model_validate(row.pop("record")), folder / row["ref"]) for name, row in rows.items()}
    for threads in sorted({1, CORES}):
        torch.set_num_threads(threads)
        timings = race(contestants, "plain fp32", batches, cast(Context, Alone(threads)))
        for batch, timed in zip(batches, timings, strict=True):
            for name, row in rows.items():
                ms = timed.latencies[name].p50_ms
                row["speed"].append({"threads": threads, "batch": batch, "ms": ms} | asdict(timed.ratios[name]))
    return found | {"load": os.getloadavg()}


def _made(task: Task, arrays: Arrays, client: Client, folder: Path, seed: int) -> dict[str, Any]:
    """Runs the optimize job, makes the rivals, and fetches all their files."""
    torch.manual_seed(seed)
    client.push(task.network().eval(), task.name, example=torch.zeros(1, *arrays["x"].shape[1:]))
    client.datasets.push(task.name, **arrays)
    model = f"{task.name}@1"
    if task.train is not None:
        made = client.jobs.submit("train", model=model, dataset=task.name, seed=seed, wait=True, **task.train)
        model = str(made.result["model"])
    began = time.monotonic()
    asked = {**task.asked, "finetune": {**task.asked["finetune"], "seed": seed}, "seed": seed}
    job = client.jobs.submit("optimize", model=model, dataset=task.name, targets=["openvino"], wait=True, **asked)
    minutes = (time.monotonic() - began) / 60
    engines, failed = rivals(task, arrays, client, model, seed)
    engines[OURS] = str(job.result["model"])
    for row in job.result["report"]["front"]:
        engines.setdefault(f"front: {row['design']}", row["model"])
    refs = {EAGER: model} | engines
    for ref in set(refs.values()):
        client.models.download(ref, folder / ref)
    report = job.result["report"]
    return {
        "task": task.name, "seed": seed, "minutes": minutes, "verdict": job.result["verdict"], "aims": task.aims,
        "winner": report["winner"]["design"], "told": report["verdict"]["told"],
        "notes": [*task.notes, *report["notes"]], "failed": failed, "table": report["table"],
        "rows": {name: _row(client.models.version(ref)) for name, ref in refs.items()},
    }  # fmt: skip


def _row(version: Any) -> dict[str, Any]:
    quality = version["metrics"]["quality"] or {}
    return {
        "ref": version["ref"], "parameters": version["parameters"], "bytes": version["bytes"],
        "verdict": version["verdict"], "accuracy": quality.get("value"), "low": quality.get("low"),
        "high": quality.get("high"), "rows": quality.get("n"), "speed": [],
        "record": {k: v for k, v in dict(version).items() if k in Version.model_fields} | {"folder": "."},
    }  # fmt: skip


def told(found: dict[str, Any]) -> str:
    """The table of one run."""
    cases = next(iter(found["rows"].values()))["speed"]
    over = "".join(f"{case['threads']:>9} {'threads' if case['threads'] > 1 else 'thread':<7}" for case in cases)
    head = "".join(f"{'ms at':>7}{case['batch']:>3}{'×':>7}" for case in cases)
    lines = [
        f"{found['task']}, seed {found['seed']}: {found['winner']} ({found['verdict']}, {found['minutes']:.1f} min, "
        f"load {found['load'][0]:.1f})",
        f"{'':79}{over}",
        f"{'':44}{'parameters':>11}{'accuracy, % [95 %]':>24}{head}",
    ]
    for name, row in sorted(found["rows"].items(), key=lambda pair: pair[1]["speed"][0]["ratio"]):
        low, value, high = (100 * (row[part] or 0) for part in ("low", "accuracy", "high"))
        accuracy = f"{value:.2f} [{low:.1f}, {high:.1f}]" if row["rows"] else ""
        figures = "".join(f"{case['ms']:>10.3f}{case['ratio']:>6.2f}×" for case in row["speed"])
        lines.append(f"{name[:43]:44}{row['parameters'] or 0:>11,}{accuracy:>24}{figures}")
    lines += [f"{name}: none ({why})" for name, why in found["failed"].items()]
    lines += [f"aim at batch {batch}: {aim}×" for batch, aim in found["aims"].items()]
    return "\n".join([*lines, *found["notes"], ""])


if __name__ == "__main__":
    sys.exit(main())
