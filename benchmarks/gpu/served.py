"""The engine behind the real service: what HTTP adds at one client, how busy the GPU gets with many, and swapping
versions under load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from enginesmith import ApiError, Client
from enginesmith.bench import Bench
from enginesmith.bench_inputs import made_up

from benchmarks.gpu.engines import drawn
from benchmarks.gpu.networks import Subject
from demo.service import service

SECONDS, SWAPS, CLIENTS = 4.0, 10, (8, 32, 64, 128)


@dataclass
class Served:
    """alone_ms, alone_p99_ms: of one client. engine_ms: mean of the engine's own run then. best: requests of one row
    per second. busy: the GPU's share of that time, where nvidia-smi tells. asked, failed, wrong: requests while
    versions were swapped."""

    alone_ms: float = 0.0
    alone_p99_ms: float = 0.0
    engine_ms: float = 0.0
    best: float = 0.0
    clients: int = 0
    busy: float | None = None
    swaps: int = 0
    asked: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0

    @property
    def added_ms(self) -> float:
        return self.alone_ms - self.engine_ms


def serve(subject: Subject, runtime: str, precisions: tuple[str, str], seconds: float = SECONDS) -> Served:
    """Uploads the network, converts it twice, serves it. precisions: of the two versions that are swapped."""
    found = Served()
    with service() as (url, _), Client(url) as client:
        client.push(subject.module(), subject.name, example=torch.randn(2, *subject.shape))
        refs = []
        for precision in precisions:
            job = client.jobs.submit(
                "convert", model=f"{subject.name}@1", target=runtime, precision=precision,
                max_batch=max(subject.batches), wait=True,
            )  # fmt: skip
            refs.append(str(job.result.model))
        client.deployments.deploy("net", refs[0])
        _load(client, refs[0], found, seconds)
        _swap(client, url, subject, refs, found, seconds)
    return found


def _load(client: Client, ref: str, found: Served, seconds: float) -> None:
    bench = Bench(client, "net", made_up(client.models.version(ref), False, 1), seconds)
    bench.check()
    alone = bench.closed(1)
    found.alone_ms, found.alone_p99_ms = float(alone["p50_ms"]), float(alone["p99_ms"])
    found.engine_ms = float((alone.get("stages_ms") or {}).get("compute_infer") or 0.0)
    for clients in CLIENTS:
        with Busy() as busy:
            point = bench.closed(clients)
        if point["per_s"] > found.best:
            found.best, found.clients, found.busy = float(point["per_s"]), clients, busy.share


def _swap(client: Client, url: str, subject: Subject, refs: list[str], found: Served, seconds: float) -> None:
    """Two clients ask all the time; every answer must be that of one of the two versions."""
    x = drawn(subject, 1)
    answers = []
    for ref in refs:
        client.deployments.deploy("net", ref)
        answers.append(np.asarray(client.predict("net", x).outputs["logits"]))
    ending = threading.Event()

    def ask() -> None:
        with Client(url) as mine:
            while not ending.is_set():
                try:
                    answer = np.asarray(mine.predict("net", x).outputs["logits"])
                except ApiError as error:
                    found.failed.append(str(error))
                    continue
                found.asked += 1
                # Batches of another size may take other kernels: near, and not equal to the last bit.
                found.wrong += not any(np.allclose(answer, a, rtol=5e-2, atol=5e-2 * np.abs(a).max()) for a in answers)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(SWAPS):
        client.deployments.deploy("net", refs[number % 2])
        found.swaps += 1
        time.sleep(seconds / SWAPS)
    ending.set()
    for thread in threads:
        thread.join()


class Busy:
    """Samples the GPU's utilization while the block runs; share stays None where nvidia-smi is not there."""

    share: float | None = None

    def __enter__(self) -> Busy:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:
            self._process = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        lines = (self._process.communicate()[0] or "").split()
        values = sorted(float(line) for line in lines if line.replace(".", "").isdigit())
        self.share = values[len(values) // 2] / 100 if values else None


def sanitizer(root: Path) -> str | None:
    """compute-sanitizer over a short run: what it says, None where it is not installed."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if tool is None:
        return None
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.check", "--short"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "FAILED: it did not end within five minutes"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return f"{'ok' if done.returncode == 0 else 'FAILED'}: {last}"
