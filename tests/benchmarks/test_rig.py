"""The arithmetic of the serving benchmark, its generators of load and its process trees."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import Ask, bento, fixed, handwritten, lit, mls, ours, ours_v2, triton
from benchmarks.rig import figures, open_loop, processes, report, wrk
from benchmarks.rig.contestants import CONTESTANTS
from benchmarks.rig.figures import Phase
from benchmarks.rig.samples import samples
from benchmarks.rig.soak import Soaked
from benchmarks.rig.targets import open_loop_name, targets

PEERS = (ours, ours_v2, handwritten, triton, mls, lit, bento, fixed)


def phase(
    contestant: str, per_s: float, turn: int = 0, workload: str = "tiny-binary", at: int = 64, **more: float
) -> Phase:
    values = {"p50_ms": 1.0, "errors": 0, "cpu_ms": 0.1, "memory_mb": 100.0, "load_1m": 0.5} | more
    return Phase(contestant, workload, at, turn, 1000, per_s, **values)  # type: ignore[arg-type]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [figures.percentile(values, q) for q in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert figures.percentile([3.0], 99) == 3.0
    assert figures.percentile([1.0, 2.0], 50) == 1.0
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 50)


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    # The second round was slow for both: the ratio of medians would be another one.
    phases = [phase("ours", p, i) for i, p in enumerate((300, 30, 200))]
    phases += [phase("triton", p, i) for i, p in enumerate((100, 10, 100))]
    assert figures.ratio(phases, "ours", "triton", "tiny-binary", 64) == 3.0
    assert figures.ratio(phases, "ours", "bentoml", "tiny-binary", 64) is None
    assert figures.ratio([*phases, phase("ours", 1, 7)], "ours", "triton", "tiny-binary", 64) == 3.0


def test_a_cell_holds_medians_and_counts_every_error() -> None:
    found = figures.cell([phase("ours", p, i, errors=i) for i, p in enumerate((1, 5, 3))], "ours", "tiny-binary", 64)
    assert found == figures.Cell(3, 1.0, 0.1, None, 3)
    assert figures.cell([], "ours", "tiny-binary", 64) is None
    assert figures.best([phase("ours", 5), phase("ours", 7, at=1)], "ours", "tiny-binary") == 7


def test_targets_say_met_missed_or_not_measured() -> None:
    phases = [phase("ours", 600, cpu_ms=0.2), phase("triton", 100), phase("batching", 500)]
    phases += [phase("bare", 10, workload="resnet-binary"), phase("ours", 9.6, workload="resnet-binary")]
    phases += [phase("ours", 300, workload=open_loop_name(300), at=0, p99_ms=1.2)]
    found = targets(phases, 64, 300, 170)
    assert [t.met for t in found] == [True, False, False, None, None, True, True, None, False]
    assert found[1].value == pytest.approx(1.2)
    text = report.target_lines(found)
    assert "MISSED" in text
    assert "not measured" in text


def test_the_table_is_aligned_and_names_every_contestant() -> None:
    phases = [phase("bare", 27_000), phase("ours", 6_000.4), phase("triton", 2_000, errors=2)]
    head, rule, *rows = report.closed_loop(phases, "tiny-binary", [64]).splitlines()
    assert [row.split()[0] for row in rows] == ["bare", "ours", "triton"]
    assert len(head) == len(rule) == len(rows[0])
    assert "6,000" in rows[1]
    assert "(2 errors)" in rows[2]
    assert rows[2].endswith("3.00")
    assert rows[1].endswith("-")


def test_a_report_names_no_machine() -> None:
    told = json.dumps(report.machine(2))
    assert socket.gethostname() not in told
    assert "model" not in told


def test_wrk_is_told_the_request_and_read(tmp_path: Path) -> None:
    ask = Ask("/x", b"\x00\x01", {"Content-Type": 'a"b'})
    path = wrk.script(ask, tmp_path)
    assert (tmp_path / "body").read_bytes() == b"\x00\x01"
    assert 'wrk.headers["Content-Type"] = "a\\"b"' in path.read_text()
    told = wrk.parse('noise\nRESULT {"requests":110,"us":2000000,"p50_us":500,"broken":1,"refused":10}\n')
    assert told == wrk.Told(110, 50.0, 0.5, 11)
    with pytest.raises(RuntimeError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1")


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.__name__.rpartition(".")[2])
def test_every_contestant_can_be_asked_every_workload(peer: object) -> None:
    tiny, picture = samples("tiny", 1)[0], samples("resnet", 1)[0]
    for workload in ("tiny-json", "tiny-binary", "resnet-binary", "resnet-jpeg"):
        ask = peer.ask(workload, tiny if workload.startswith("tiny") else picture)  # type: ignore[attr-defined]
        if ask is None:
            assert (peer, workload) == (ours_v2, "resnet-jpeg")
            continue
        assert ask.path.startswith("/")
        if ask.headers["Content-Type"] == "application/json":
            json.loads(ask.body)


def test_answers_are_read_in_every_form() -> None:
    values = np.arange(4, dtype=np.float32)
    assert ours.answer(ours.ask("tiny-binary", samples("tiny", 1)[0]._replace(x=values)).body).tolist() == [0, 1, 2, 3]
    assert handwritten.answer(values.tobytes()).tolist() == [0, 1, 2, 3]
    head = b'{"outputs":[{"name":"logits","parameters":{"binary_data_size":16}}]}'
    assert triton.answer(head + values.tobytes()).tolist() == [0, 1, 2, 3]
    assert triton.answer(b'{"outputs":[{"data":[1,2]}]}').tolist() == [1, 2]
    assert mls.answer(b'{"outputs":[{"data":[[1,2]]}]}').tolist() == [1, 2]


def test_the_same_seed_gives_the_same_samples() -> None:
    one, two = samples("tiny", 2), samples("tiny", 2)
    assert one[1].text == two[1].text
    assert one[1].jpeg == two[1].jpeg
    assert not np.array_equal(one[0].x, one[1].x)
    assert np.array_equal(np.array(json.loads(one[0].text), np.float32), one[0].x)


def test_contestants_have_names_of_their_own() -> None:
    names = [c.name for c in CONTESTANTS]
    assert len(set(names)) == len(names)
    assert {c.module for c in CONTESTANTS if c.server == "ours"} == {"ours", "ours_v2"}


def test_memory_that_grows_is_told_from_memory_that_settles() -> None:
    assert not Soaked([(0, 100.0), (100, 140.0), (1000, 141.0)]).grows
    assert Soaked([(0, 100.0), (100, 110.0), (1000, 140.0)]).grows


class _Answers(BaseHTTPRequestHandler):
    """200 with 40 bytes, or what the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "40")
        self.end_headers()
        self.wfile.write(b"x" * 40)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_open_loop_sends_what_was_asked_and_counts_errors(port: int) -> None:
    fine = open_loop.run(port, Ask("/200", b"abc", {"X": "y"}), rate=100, seconds=0.5, patience_s=60)
    assert (fine.requests, fine.errors) == (50, 0)
    assert 0 < fine.p50_ms <= fine.p95_ms <= fine.p99_ms < 60_000
    refused = open_loop.run(port, Ask("/503", b"", {}), rate=100, seconds=0.1, patience_s=60)
    assert (refused.requests, refused.errors, refused.p99_ms) == (10, 10, float("inf"))


def test_an_answer_without_a_length_is_not_guessed_at() -> None:
    assert open_loop.content_length(b"HTTP/1.1 200 OK\r\ncontent-length:  12\r\nX: y") == 12
    with pytest.raises(ValueError, match="Content-Length"):
        open_loop.content_length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")


_FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _comes(pid: int, *states: str) -> bool:
    until = time.monotonic() + 30
    while _state(pid) not in states and time.monotonic() < until:
        time.sleep(0.02)
    return _state(pid) in states


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_tree_is_paused_measured_and_ended_whole(tmp_path: Path) -> None:
    tree = processes.Tree([sys.executable, "-c", _FAMILY], tmp_path / "log", tmp_path, pipes=True)
    try:
        assert tree.process.stdout is not None
        child = int(tree.process.stdout.readline())
        assert processes.tree(tree.pid) == [tree.pid, child]
        assert processes.find(tree.pid, "import time; time.sleep(600)") == child
        assert processes.cpu_ms(tree.pid) >= 0
        assert processes.resident_mb(child) > 1
        tree.pause()
        assert _comes(child, "T")
        tree.resume()
        assert _comes(child, "S")
    finally:
        tree.end()
    assert _comes(child, "gone", "Z")
    assert not tree.alive
