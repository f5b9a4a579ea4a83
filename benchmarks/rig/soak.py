"""Whether the app's memory grows: so many requests of every kind, and its RSS as it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import Ask, Sample, ours, ours_v2
from benchmarks.rig import wrk
from benchmarks.rig.contestants import CACHE, CONTESTANTS, OURS, Server, wait_until_it_answers
from benchmarks.rig.networks import network
from benchmarks.rig.processes import find, resident_mb
from benchmarks.rig.samples import samples

STEP = 50_000
PIECE_S = 3
_ALLOWED_MB = 8.0  # allocators keep a little more with time; a leak of 10 bytes a request would be 10 MB a million


class Soaked(NamedTuple):
    """points: (requests so far, RSS in MB)."""

    points: list[tuple[int, float]]

    @property
    def growth_mb(self) -> float:
        """From a tenth of the way, when buffers and caches are there, to the end."""
        total = self.points[-1][0]
        return self.points[-1][1] - next(mb for at, mb in self.points if at >= total / 10)

    @property
    def grows(self) -> bool:
        return self.growth_mb > _ALLOWED_MB


def asks(sample: Sample) -> list[Ask]:
    """Every kind of request in turn, one that is refused and one that nobody takes among them."""
    found = [ours.ask("tiny-binary", sample), ours.ask("tiny-json", sample), ours_v2.ask("tiny-binary", sample)]
    wrong = Ask("/predict/peer", b'{"inputs":[[1,2,3]]}', {"Content-Type": "application/json"})
    return [*(ask for ask in found if ask), wrong, Ask("/predict/nobody", b"{}", {"Content-Type": "application/json"})]


def app_of(server: Server) -> int:
    """The app's process. Raises LookupError."""
    pid = find(server.tree.pid, "app", "http")
    if pid is None:
        raise LookupError("the app's process was not found")
    return pid


def soak(server: Server, sample: Sample, total: int, folder: Path) -> Soaked:
    """Prints a line every 50,000 requests. Raises RuntimeError when the app stops answering, or was replaced."""
    app = app_of(server)
    points = [(0, resident_mb(app))]
    kinds = asks(sample)
    done, turn, next_line = 0, 0, 0
    while done < total:
        # Refusals are a small part of it, as they should be anywhere.
        ask = kinds[turn % 3] if turn % 8 else kinds[3 + turn // 8 % 2]
        turn += 1
        told = wrk.run(server.given.port, ask, 64, 1 if turn % 8 == 1 else PIECE_S, folder)
        if not told.requests or app_of(server) != app:
            raise RuntimeError(f"the app stopped answering after {done} requests{server.tail()}")
        done += told.requests
        points.append((done, resident_mb(app)))
        if done >= next_line:
            print(f"{done:>10,} requests  {points[-1][1]:7.1f} MB", flush=True)
            next_line = (done // STEP + 1) * STEP
    return Soaked(points)


def soak_alone(total: int, threads: int, folder: Path) -> int:
    """Starts our service with the tiny model for it. 1 when the app's memory grows. Raises Broken, RuntimeError."""
    contestant = next(c for c in CONTESTANTS if c.name == OURS)
    onnx = network("tiny", CACHE / "networks")
    server = Server(contestant, "tiny", onnx, threads, folder / "ours-soak")
    try:
        sample = samples("tiny", 1)[0]
        wait_until_it_answers(server, contestant.peer.ask("tiny-binary", sample))
        began = time.monotonic()
        found = soak(server, sample, total, folder)
    finally:
        server.tree.end()
    took, verdict = time.monotonic() - began, "it GROWS" if found.grows else "it does not grow"
    print(
        f"{found.points[-1][0]:,} requests in {took:.0f} s: {found.growth_mb:+.1f} MB since a tenth of them: {verdict}"
    )
    return int(found.grows)
