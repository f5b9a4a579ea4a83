"""What was measured of kernels, for the builds of a job: a store that fails costs time, and never a build."""

from __future__ import annotations

import pytest

from app.runtimes import tensorrt
from app.storage.artifacts import Artifacts
from app.storage.timings import Timings
from workers.passes._timing import Kept, timing_cache


def test_one_for_the_gpu_that_is_here(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = bench.context({"kind": "convert"})
    assert timing_cache(ctx, "openvino") is None
    monkeypatch.setattr(tensorrt, "ties", lambda: {"version": "11.4", "device": "a"})
    made = timing_cache(ctx, "tensorrt")
    assert made is not None
    assert made.read() == b""
    assert made.write(b"measured")
    assert timing_cache(ctx, "tensorrt").read() == b"measured"
    for other in ({"version": "11.4", "device": "b"}, {"version": "11.5", "device": "a"}):
        monkeypatch.setattr(tensorrt, "ties", lambda other=other: other)
        assert timing_cache(ctx, "tensorrt").read() == b""
    ctx.report.close()


def test_a_store_that_fails_is_told_and_no_more(bench, tmp_path) -> None:
    ctx = bench.context({"kind": "convert"})
    kept = Kept(ctx, Timings(bench.artifacts, bench.catalog.redis, "a"))
    assert kept.write(b"measured")
    (tmp_path / "away").mkdir()
    away = Artifacts((tmp_path / "away").as_uri())
    (tmp_path / "away").rmdir()
    (tmp_path / "away").write_bytes(b"no folder")
    kept = Kept(ctx, Timings(away, bench.catalog.redis, "a"))
    assert kept.read() == b""
    assert kept.write(b"more")
    ctx.report.close()
    told = [line["text"] for _, kind, line in bench.catalog.events(ctx.job.id) if kind == "log"]
    assert told == [
        "kernels are measured anew, what is known of them could not be read: the artifact store failed: GenericError",
        "what was measured of kernels is not kept: the artifact store failed: GenericError",
    ]
