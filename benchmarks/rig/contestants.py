"""Who is measured, in which environment each lives, and a running one."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import Ask, Options, Rows, Sample
from benchmarks.rig.processes import Tree, free_ports

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".bench"
START_S = 120.0
_DRAIN_S = 0.5


class Contestant(NamedTuple):
    """name: as the table has it. module: its file in benchmarks/peers. server: those with the same one share it."""

    name: str
    module: str
    server: str
    told: str

    @property
    def peer(self) -> Any:
        return importlib.import_module(f"benchmarks.peers.{self.module}")


BARE = "bare"
OURS = "ours"
CONTESTANTS = (
    Contestant(BARE, "bare", "bare", "ceiling: the engine in a loop, batches as large as the concurrency"),
    Contestant("fixed", "fixed", "fixed", "ceiling: a raw ASGI app that answers fixed bytes, under uvicorn"),
    Contestant(OURS, "ours", "ours", "enginesmith serve, /predict"),
    Contestant("ours-v2", "ours_v2", "ours", "enginesmith serve, /v2 (Open Inference Protocol)"),
    Contestant("ours-split", "ours_split", "ours-split", "enginesmith serve, an instance of the engine on each core"),
    Contestant("batching", "handwritten_batching", "batching", "hand-written FastAPI, work-conserving batching"),
    Contestant("tuned", "handwritten_tuned", "tuned", "the same, with our settings of the garbage collector"),
    Contestant("plain", "handwritten", "plain", "hand-written FastAPI, one run a request"),
    Contestant("triton", "triton", "triton", "Triton (nvidia-pytriton)"),
    Contestant("mlserver", "mls", "mlserver", "MLServer"),
    Contestant("litserve", "lit", "litserve", "LitServe"),
    Contestant("bentoml", "bento", "bentoml", "BentoML"),
)


class Broken(Exception):
    """A contestant that does not start, or answers wrongly."""


def python_of(contestant: Contestant) -> str:
    """The interpreter of its environment, which is made and filled when it is not there. Raises Broken."""
    packages: tuple[str, ...] = contestant.peer.PACKAGES
    if not packages:
        return sys.executable
    folder = CACHE / contestant.server
    python = folder / "bin" / "python"
    whole = folder / "installed.txt"
    if not whole.exists() or whole.read_text() != "\n".join(packages):
        print(f"installing {', '.join(packages)} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Broken(f"{contestant.name} cannot be installed: {done.stderr[-600:]}")
        whole.write_text("\n".join(packages))
    return str(python)


def versions_of(contestant: Contestant) -> dict[str, str]:
    """The packages named, as they are installed; what serves it here where none are."""
    packages = contestant.peer.PACKAGES or ("openvino", "uvicorn", "uvloop", "httptools", "fastapi", "orjson", "numpy")
    names = [name.partition("=")[0].partition("<")[0].partition(">")[0] for name in packages]
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python_of(contestant), "-c", code, *names], capture_output=True, text=True, check=False)
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


class Server:
    """A contestant's running processes. Those that share a server are asked at the same port."""

    def __init__(self, contestant: Contestant, model: str, onnx: Path, threads: int, folder: Path) -> None:
        self.name = contestant.server
        folder.mkdir(parents=True)
        python = python_of(contestant)
        self.given = Options(free_ports(3), onnx, model, threads, folder)
        self.log = folder.with_suffix(".log")
        peer = contestant.peer
        self.tree = Tree(peer.command(python, self.given), self.log, ROOT, pipes=contestant.name == BARE)
        try:
            if prepare := getattr(peer, "prepare", None):
                done = subprocess.run(
                    prepare(python, self.given), cwd=ROOT, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise Broken(f"{self.name} cannot be prepared: {done.stderr[-800:]}{self.tail()}")
            if contestant.name == BARE:
                self.tell(None)
        except BaseException:
            self.tree.end()
            raise

    @contextlib.contextmanager
    def awake(self, ask: Ask | None = None) -> Iterator[None]:
        """Runs for a while, and is paused before and after. ask: sent a few times, so that it is really awake."""
        self.tree.resume()
        try:
            for again in [ask] * 20 if ask else []:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    post(self.given.port, again)
            yield
        finally:
            time.sleep(_DRAIN_S)  # a tritonserver that is stopped in the middle of a run is dead when it goes on
            self.tree.pause()

    def tail(self) -> str:
        text = self.log.read_text(errors="replace")[-1200:] if self.log.exists() else ""
        return f"\nits log ends:\n{text}" if text else ""

    def tell(self, line: str | None) -> dict[str, Any]:
        """A line to the bare engine, and its answer. Raises Broken."""
        stdin, stdout = self.tree.process.stdin, self.tree.process.stdout
        assert stdin is not None
        assert stdout is not None
        if line is not None:
            stdin.write(line + "\n")
            stdin.flush()
        told = stdout.readline()
        if not told:
            raise Broken(f"the bare engine ended{self.tail()}")
        found: dict[str, Any] = json.loads(told)
        return found


def post(port: int, ask: Ask) -> tuple[int, bytes]:
    """Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", ask.path, ask.body, ask.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until_it_answers(server: Server, ask: Ask, seconds: float = START_S) -> None:
    """Raises Broken when there has been no 200 for so long, or the server has ended."""
    until = time.monotonic() + seconds
    last = "no answer"
    while time.monotonic() < until:
        if not server.tree.alive:
            raise Broken(f"{server.name} ended{server.tail()}")
        try:
            status, body = post(server.given.port, ask)
        except (OSError, http.client.HTTPException) as error:
            last = str(error)
        else:
            if status == 200:
                return
            last = f"{status} {body[:300]!r}"
        time.sleep(0.25)
    raise Broken(f"{server.name} did not answer {ask.path}: {last}{server.tail()}")


def check_answers(server: Server, contestant: Contestant, workload: str, samples: list[Sample], right: Rows) -> float:
    """All samples at once, so that they are batched. right: [samples, classes]. Gives the largest difference ÷ the
    largest right value. Raises Broken for a wrong answer."""
    peer = contestant.peer
    asks = [peer.ask(workload, sample) for sample in samples]
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = list(pool.map(lambda ask: post(server.given.port, ask), asks))
    largest = 0.0
    for (status, body), wanted in zip(answers, right, strict=True):
        if status != 200:
            raise Broken(f"{contestant.name}, {workload}: {status} {body[:300]!r}{server.tail()}")
        found = peer.answer(body)
        if found.shape != wanted.shape:
            raise Broken(f"{contestant.name}, {workload}: {found.shape} values for {wanted.shape}")
        largest = max(largest, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    # Batches of another size add in another order; another JPEG decoder may round a pixel differently.
    if largest > (0.02 if workload.endswith("jpeg") else 1e-4):
        raise Broken(f"{contestant.name}, {workload}: answers differ from the bare engine's by {largest:.2g}")
    return largest
