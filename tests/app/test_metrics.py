"""The figures of one version under one deployment, and their text form as Prometheus reads it."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import BACKEND, KEPT_S, OTHER, REJECTED, Histogram, Meters


def test_a_histogram_counts_up_to_its_bounds() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 100):
        histogram.add(value)
    samples = {(suffix, labels): value for suffix, labels, value in histogram.samples('a="b"')}
    assert samples == {
        ("_bucket", 'a="b",le="1"'): 2,
        ("_bucket", 'a="b",le="2"'): 3,
        ("_bucket", 'a="b",le="4"'): 4,
        ("_bucket", 'a="b",le="+Inf"'): 5,
        ("_sum", 'a="b"'): 107,
        ("_count", 'a="b"'): 5,
    }


def test_a_run_is_told_in_every_form() -> None:
    meters = Meters()
    meter = meters.of("web", "net@3")
    meter.ran([10.0, 10.5], 6, (11.0, 11.25, 12.25, 12.5), 13.0)
    meter.succeeded += 2
    meter.refuse(REJECTED, "deadline")
    meter.refuse(REJECTED, "queue_full")
    meter.refuse(OTHER, "bad_tensor")
    meter.failed[BACKEND] += 1
    meter.hung += 1
    meter.pending, meter.pending_rows = 2, 9
    text = meters.exposition()
    found = {
        (
            sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name,  # the parser's
            sample.labels.get("reason") or sample.labels.get("stage") or sample.labels.get("le"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not (sample.name.startswith("enginesmith_stage") and sample.name.endswith("_bucket"))
    }
    assert {k: v for k, v in found.items() if v} == pytest.approx(
        {
            ("nv_inference_request_success", None): 2,
            ("nv_inference_request_failure", "REJECTED"): 2,
            ("nv_inference_request_failure", "BACKEND"): 1,
            ("nv_inference_request_failure", "OTHER"): 1,
            ("nv_inference_count", None): 6,
            ("nv_inference_exec_count", None): 1,
            ("nv_inference_pending_request_count", None): 2,
            ("nv_inference_request_duration_us", None): 5.5e6,
            ("nv_inference_queue_duration_us", None): 1.5e6,
            ("nv_inference_compute_input_duration_us", None): 0.5e6,
            ("nv_inference_compute_infer_duration_us", None): 2e6,
            ("nv_inference_compute_output_duration_us", None): 0.5e6,
            ("enginesmith_pending_rows", None): 9,
            ("enginesmith_refused_total", "deadline"): 1,
            ("enginesmith_refused_total", "queue_full"): 1,
            ("enginesmith_refused_total", "bad_tensor"): 1,
            ("enginesmith_deadline_missed_total", None): 1,
            ("enginesmith_engine_hung_total", None): 1,
            **{("enginesmith_batch_rows_bucket", str(n)): 1 for n in (8, 16, 32, 64, 128, 256, 512, 1024)},
            ("enginesmith_batch_rows_bucket", "+Inf"): 1,
            ("enginesmith_batch_rows_sum", None): 6,
            ("enginesmith_batch_rows_count", None): 1,
            ("enginesmith_stage_seconds_sum", "queue"): 1.5,
            ("enginesmith_stage_seconds_sum", "input"): 0.25,
            ("enginesmith_stage_seconds_sum", "infer"): 1.0,
            ("enginesmith_stage_seconds_sum", "output"): 0.25,
            ("enginesmith_stage_seconds_count", "queue"): 2,
            ("enginesmith_stage_seconds_count", "input"): 1,
            ("enginesmith_stage_seconds_count", "infer"): 1,
            ("enginesmith_stage_seconds_count", "output"): 1,
        }
    )
    for line in re.findall(r"^[^#].*", text, re.MULTILINE):
        assert 'model="web",version="3"' in line
        assert ('ref="net@3"' in line) != line.startswith("nv_")
    assert meter.by_rows[6].infer_us == pytest.approx(1e6)


def test_what_a_gpu_took_is_told_where_there_is_one() -> None:
    meters = Meters()
    meters.of("web", "a@1").ran([0.0], 1, (0.0, 0.0, 1.0, 1.0), 1.0)
    assert "gpu" not in meters.exposition()
    on_gpu = meters.of("web", "b@1")
    on_gpu.ran_on_gpu(0.001, 0.25, 0.002, False)
    on_gpu.ran_on_gpu(0.001, 0.25, 0.002, True)
    text = meters.exposition()
    at = 'model="web",version="1",ref="b@1"'
    assert f'enginesmith_gpu_stage_seconds_sum{{{at},stage="compute"}} 0.5\n' in text
    assert f'enginesmith_gpu_stage_seconds_count{{{at},stage="copy_out"}} 2\n' in text
    assert f"enginesmith_gpu_graph_runs_total{{{at}}} 1\n" in text
    assert 'ref="a@1",stage="compute"' not in text


def test_a_version_that_comes_back_goes_on_where_it_stopped() -> None:
    meters = Meters()
    assert meters.of("web", "a@1") is meters.of("web", "a@1")
    assert meters.of("web", "a@1") is not meters.of("web", "a@2")


def test_versions_of_one_number_are_told_apart_and_forgotten_when_they_have_gone() -> None:
    meters = Meters()
    meters.of("web", "a@1").pending_rows = meters.of("web", "a@1").rows = 3
    meters.of("web", "b@1").pending_rows = meters.of("web", "b@1").rows = 4
    text = meters.exposition()
    assert 'enginesmith_pending_rows{model="web",version="1",ref="a@1"} 3\n' in text
    assert 'enginesmith_pending_rows{model="web",version="1",ref="b@1"} 4\n' in text
    assert text.count("\nnv_inference_count{") == 1
    assert 'nv_inference_count{model="web",version="1"} 7\n' in text  # as Triton labels it
    only_b = {("web", "b@1")}
    meters.keep(only_b, 1000.0)
    meters.keep(only_b, 1000.0 + KEPT_S - 1)
    assert meters.of("web", "a@1").rows == 3  # whoever asks now and then has not seen the end of it yet
    meters.keep({("web", "a@1"), *only_b}, 1000.0 + KEPT_S)  # back again
    meters.keep(only_b, 1000.0 + 2 * KEPT_S)
    meters.keep(only_b, 1000.0 + 3 * KEPT_S - 1)
    assert 'ref="a@1"' in meters.exposition()
    meters.keep(only_b, 1000.0 + 3 * KEPT_S)
    assert 'ref="a@1"' not in meters.exposition()
    assert meters.of("web", "b@1").rows == 4
