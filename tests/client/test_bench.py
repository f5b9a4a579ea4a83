"""The load of `bench` and what it makes of it, against servers that answer as a test scripts them."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from enginesmith import bench_metrics
from enginesmith.bench import told
from enginesmith.bench_advice import suggest
from enginesmith.bench_inputs import from_file, made_up
from enginesmith.bench_load import BadAnswer, Sample, closed_loop, open_loop
from enginesmith.bench_wire import Target
from enginesmith.cli_state import UsageError
from enginesmith.records import Record

BODY = b"0123456789"
REQUEST = b"POST /predict/net HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n" + BODY
Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(status: int = 200, body: bytes = b"ok") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def loaded(answering: Answering, load: Callable[[Target], Awaitable[Sample]]) -> Sample:
    """Runs a load against a server that reads whole requests and has `answering` write the answers."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(BODY)) == BODY
                await answering(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        return await load(Target("127.0.0.1", server.sockets[0].getsockname()[1], (REQUEST,)))
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def plainly(writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


async def test_a_closed_loop_has_as_many_outstanding_as_it_says() -> None:
    outstanding = most = 0
    gate = asyncio.Event()

    async def together(writer: asyncio.StreamWriter) -> None:
        nonlocal outstanding, most
        outstanding += 1
        most = max(most, outstanding)
        if most == 4:
            gate.set()
        await gate.wait()
        await asyncio.sleep(0.001)
        outstanding -= 1
        writer.write(answer())

    sample = await loaded(together, lambda target: closed_loop(target, 4, 0.2))
    assert most == 4
    assert len(sample.latencies) > 0
    assert not sample.statuses
    assert sample.cpu_s > 0


async def test_answers_in_pieces_and_large_ones() -> None:
    async def in_pieces(writer: asyncio.StreamWriter) -> None:
        whole = answer(body=b"x" * 200_000)
        for cut in (whole[:5], whole[5:30], whole[30:70], whole[70:]):
            writer.write(cut)
            await writer.drain()
            await asyncio.sleep(0)

    sample = await loaded(in_pieces, lambda target: closed_loop(target, 2, 0.2))
    assert len(sample.latencies) > 0
    assert not sample.statuses


async def test_refusals_and_broken_connections_are_counted_apart() -> None:
    count = 0

    async def in_turn(writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count % 4 == 0:
            writer.write(answer(429))
        elif count % 4 == 1:
            writer.write(answer(500))
        elif count % 4 == 2:
            writer.write(answer()[:20])
            writer.close()
        else:
            writer.write(answer())

    sample = await loaded(in_turn, lambda target: closed_loop(target, 2, 1.0))
    assert set(sample.statuses) == {"429", "500", "connection lost"}
    assert len(sample.latencies) > 0
    point = told(sample, 1)
    assert point["refused"] == sample.statuses["429"]
    assert set(point["errors"]) == {"500", "connection lost"}


async def test_an_open_loop_counts_from_the_moment_a_request_is_due() -> None:
    """The service stands still at first: whatever falls due meanwhile is late by the rest of that time."""
    begun: list[float] = []
    still, rate = 0.3, 100.0
    loop = asyncio.get_running_loop()

    async def at_last(writer: asyncio.StreamWriter) -> None:
        begun.append(loop.time())
        await asyncio.sleep(max(0.0, begun[0] + still - loop.time()))
        writer.write(answer())

    sample = await loaded(at_last, lambda target: open_loop(target, rate, 0.5))
    assert len(sample.latencies) == 50
    assert not sample.statuses
    assert len(sample.late) == 50
    for n, latency in enumerate(sorted(sample.latencies, reverse=True)[:20]):
        assert latency >= still - n / rate - 0.005


async def test_an_open_loop_opens_connections_as_it_needs_them() -> None:
    gate = asyncio.Event()
    held = 0

    async def together(writer: asyncio.StreamWriter) -> None:
        nonlocal held
        held += 1
        if held == 60:  # more than are opened beforehand
            gate.set()
        await gate.wait()
        writer.write(answer())

    sample = await loaded(together, lambda target: open_loop(target, 300, 0.4))
    assert len(sample.latencies) == 120
    assert not sample.statuses


async def test_a_service_that_is_slower_than_a_point_is_long() -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(answer())

    sample = await loaded(slowly, lambda target: closed_loop(target, 2, 0.05))
    assert len(sample.latencies) == 1
    assert sample.seconds > 0.15


async def test_an_answer_without_a_length_is_said_to_be_none() -> None:
    async def chunked(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    with pytest.raises(BadAnswer, match="Content-Length"):
        await loaded(chunked, lambda target: closed_loop(target, 1, 0.1))


async def test_nobody_there() -> None:
    with pytest.raises(OSError):
        await closed_loop(Target("127.0.0.1", 1, (REQUEST,)), 1, 0.1)


def test_figures_of_nothing() -> None:
    point = told(Sample(seconds=1), 1)
    assert (point["requests"], point["per_s"], point["p99_ms"], point["errors"]) == (0, 0, None, {})


def test_bodies_from_a_signature() -> None:
    tensors = [
        {"name": "x", "dtype": "float32", "shape": [-1, 3, -1], "batch_axis": 0},
        {"name": "ids", "dtype": "int64", "shape": [-1, 4], "batch_axis": 0},
    ]
    version = Record(signature={"inputs": tensors}, details={"shapes": {"x": [1, 3, 8]}})
    made = made_up(version, False, 2)
    assert made.content_type == "application/x-npz"
    assert len(set(made.bodies)) == len(made.bodies) > 1
    found = np.load(io.BytesIO(made.bodies[0]))
    assert (found["x"].shape, found["x"].dtype, found["ids"].shape) == ((2, 3, 8), np.float32, (2, 4))
    assert found["ids"].min() >= 0
    inputs = json.loads(made_up(version, True, 1).bodies[0])["inputs"]
    assert np.shape(inputs["x"]) == (1, 3, 8)
    with pytest.raises(UsageError, match="--input"):
        made_up(Record(signature={"inputs": tensors}), False, 1)
    words = [{"name": "text", "dtype": "string", "shape": [-1], "batch_axis": 0}]
    assert made_up(Record(signature={"inputs": words}), False, 1).content_type == "application/json"


def test_bodies_from_files(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", a=array)
    (tmp_path / "x.json").write_text("[[1, 2, 3]]")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    assert from_file(tmp_path / "x.npy", False, 1).rows == 2
    assert json.loads(from_file(tmp_path / "x.npy", True, 1).bodies[0]) == {"inputs": array.tolist()}
    assert json.loads(from_file(tmp_path / "x.npz", True, 1).bodies[0]) == {"inputs": {"a": array.tolist()}}
    assert json.loads(from_file(tmp_path / "x.json", False, 1).bodies[0]) == {"inputs": [[1, 2, 3]]}
    assert from_file(tmp_path / "x.jpg", False, 1).content_type == "image/jpeg"
    with pytest.raises(UsageError, match="cannot be read"):
        from_file(tmp_path / "bad.npy", False, 1)
    with pytest.raises(UsageError, match="--input takes"):
        from_file(tmp_path / "x.txt", False, 1)
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "none.npy", False, 1)


METRICS = """# HELP nv_inference_count Rows
# TYPE nv_inference_count counter
nv_inference_count{{model="net",version="1"}} {rows}
nv_inference_count{{model="other",version="1"}} 999
nv_inference_exec_count{{model="net",version="1"}} {runs}
nv_inference_request_success{{model="net",version="1"}} {rows}
nv_inference_queue_duration_us{{model="net",version="1"}} {us}
some_batch_rows_bucket{{model="net",le="1.0"}} {ones}
some_batch_rows_bucket{{model="net",le="8.0"}} {runs}
some_batch_rows_bucket{{model="net",le="+Inf"}} {runs}
process_cpu_seconds_total 1.5e-01
odd{{name="a \\"b\\" \\\\ c, d=\\"e\\"\\nf"}} 1
"""


def test_what_metrics_say_of_a_point() -> None:
    before = bench_metrics.parse(METRICS.format(rows=10, runs=10, us=0, ones=10))
    after = bench_metrics.parse(METRICS.format(rows=110, runs=30, us=50_000, ones=15))
    assert before["odd", (("name", 'a "b" \\ c, d="e"\nf'),)] == 1
    found = bench_metrics.difference(before, after, "net")
    assert found["batch"] == {"mean": 5.0, "runs": 20, "histogram": {"1": 5, "8": 15}}
    assert found["stages_ms"]["queue"] == 0.5
    assert bench_metrics.difference(after, before, "net") == {}
    assert bench_metrics.difference(None, after, "net") == {}
    assert bench_metrics.difference(before, after, "nobody") == {}


def point(concurrency: int, per_s: float, largest: int, **fields: float) -> dict[str, object]:
    stages = {"queue": 4.0, "compute_infer": 2.0}
    batch = {"mean": largest, "runs": 1, "histogram": {str(largest): 1}}
    return {
        "concurrency": concurrency,
        "per_s": per_s,
        "batch": batch,
        "stages_ms": stages,
        "server_cores": 1.9,
    } | fields


def test_advice_from_what_was_seen() -> None:
    deployment = Record(max_batch=16, instances=1)
    full = suggest([point(1, 100, 1), point(64, 900, 16)], deployment, 64, 2)
    assert (full["max_batch"], full["instances"]) == (32, 1)
    small = suggest([point(1, 100, 1), point(64, 900, 4)], deployment, 64, 2)
    assert small["max_batch"] == 4
    idle = suggest([point(1, 100, 1), point(64, 900, 12, server_cores=0.5)], deployment, 64, 2)
    assert idle["instances"] == 2
    fine = suggest([point(1, 100, 1), point(64, 900, 12)], deployment, 64, 2)
    assert fine["why"] == ["nothing seen speaks against the settings as they are"]
    assert not fine["tried"]


# In a process of its own: a library that this one has loaded (an OpenVINO engine) may not live through the signal.
INTERRUPTED = """
import signal
from enginesmith.bench_advice import _uninterrupted

handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
try:
    with _uninterrupted():
        signal.raise_signal(signal.SIGINT)
        print("put")
except KeyboardInterrupt:
    print("interrupted")
with _uninterrupted():
    pass
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers)
"""


def test_what_is_put_while_ctrl_c_comes_is_known() -> None:
    ended = subprocess.run((sys.executable, "-c", INTERRUPTED), capture_output=True, text=True, timeout=60)
    assert (ended.stdout.split(), ended.returncode) == (["put", "interrupted", "True"], 0), ended.stderr
