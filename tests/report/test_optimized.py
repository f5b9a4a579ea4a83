"""The page of an optimize job: in words, each thing once, and no table that a phone would cut."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from app.report import found
from app.report.page import page

PLAIN, TUNED, WON = "plain-openvino-fp32", "tuned-openvino-fp32", "design-0"
WORDS = {
    PLAIN: "as it is · fp32 · openvino",
    TUNED: "fine-tuned · fp32 · openvino",
    WON: "up to 50 % of the channels less, per layer · int8 · openvino",
}
DIFFERENCE = {
    "name": "accuracy", "difference": -0.0031, "low": -0.0062, "high": 0.001, "n": 3600, "confidence": 0.95,
    "method": "Tango's score interval",
}  # fmt: skip
SAID = "Accepted: -0.31 points [-0.62, +0.10] over 3600 rows; a loss of up to 1.00 is allowed."
SETTINGS = "On this host, of 2 settings: one run at a time on 2 threads: a run of 1 takes 0.210 ms."


def judged(name: str, ratio: float, *, low: float, high: float, **more: Any) -> dict[str, Any]:
    timed = {
        "runtime": "openvino", "batch": 1, "p50_ms": 0.5 / ratio, "p95_ms": 0.6, "p99_ms": 0.7, "runs": 100,
        "threads": 2, "load_1m": 3.27, "device": "cpu", "throughput_rps": 2000.0,
        "histogram": {"low": 0.1, "high": 0.5, "counts": [60, 30, 8, 0]},
    }  # fmt: skip
    return {
        "name": name, "quality": {"name": "accuracy", "value": 0.91, "low": 0.9, "high": 0.92, "n": 3600},
        "speedup": {"1": {"ratio": ratio, "low": low, "high": high, "rounds": 11}}, "latency": [timed],
        "bytes": 120_000, "parameters": 23_050, "macs": 460_416, "verdict": "accepted", "difference": DIFFERENCE,
        "samples_needed": None,
    } | more  # fmt: skip


def trial(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "design": WORDS[name], "job": f"j-{name}", "status": "succeeded", "quality": 0.9, "gain": 2.5,
        "speedup": 2.5, "speedup_low": 2.4, "speedup_high": 2.6, "latency_ms": 0.2, "parameters": 23_050,
        "macs": 460_416, "bytes": 120_000, "cache_hit": False, "seconds": 12.5, "why_not": None,
    } | more  # fmt: skip


def rows(*losses: float) -> list[dict[str, Any]]:
    return [{"epoch": i + 1, "loss": loss, "val_accuracy": 0.5 + i / 10, "lr": 0.1} for i, loss in enumerate(losses)]


WINNER = judged(WON, 2.5, low=2.4, high=2.6, design=WORDS[WON], model="net@3")
REPORT: dict[str, Any] = {
    "objective": "latency", "batch": 1, "targets": ["openvino"], "max_accuracy_drop": 0.01, "confidence": 0.95,
    "winner": WINNER,
    "verdict": {"verdict": "accepted", "told": SAID, "difference": DIFFERENCE, "differences": {TUNED: DIFFERENCE},
                "against": TUNED, "samples_needed": None},
    "baselines": {PLAIN: judged(PLAIN, 1.0, low=1.0, high=1.0), TUNED: judged(TUNED, 1.01, low=0.97, high=1.05)},
    "better_baseline": TUNED,
    "front": [WINNER], "beside": [judged(PLAIN, 1.0, low=1.0, high=1.0, design=WORDS[PLAIN], model="net@4")],
    "sequence": [WON], "table": [trial(name) for name in WORDS],
    "recipe": [{"kind": "prune", "amount": 0.5}], "splits": {"chosen_on": "val", "judged_on": "test"},
    "floor_ms": {"1": 0.008},
    "layers": {"conv_1": {"channels": {"before": 16, "after": 8}, "sparsity_after": 0.0, "precision": "int8"}},
    "training": {WON: rows(0.5, 0.4, 0.3), TUNED: rows(0.2, 0.1)},
    "settings": {
        "tried": [
            {"instances": 1, "threads": 2, "batch": 1, "rows_per_s": 4761.5, "p50_ms": 0.21},
            {"instances": 2, "threads": 2, "batch": 64, "rows_per_s": 129_858.0, "p50_ms": 0.93},
        ],
        "recommended": {"instances": 1, "threads": 2}, "told": SETTINGS,
    },
    "notes": [SAID, SETTINGS],
    "figures": [
        {"title": "Accuracy against latency", "kind": "points", "x": {"label": "ms"}, "y": {"label": "accuracy"},
         "series": [{"name": "tried (validation)", "x": [0.2], "y": [0.9], "labels": [WORDS[WON]]}]},
        {"title": "Latency of a run of 1 row", "kind": "histogram", "x": {"label": "ms"}, "y": {"label": "share"},
         "series": [{"name": n, "x": [0.1, 0.2, 0.3], "y": [0.5, 0.5]} for n in (PLAIN, "nothing at all")]},
    ],
}  # fmt: skip
OLD = {name: held for name, held in REPORT.items() if name not in ("layers", "training")}


def given(report: dict[str, Any], **more: Any) -> dict[str, Any]:
    job = {
        "id": "j1", "kind": "optimize", "model": "net@2", "dataset": "digits@1", "status": "succeeded", "history": [],
        "spec": {"kind": "optimize", "model": "net@2", "max_batch": 64}, "error": None, "attempt": 1, "warnings": [],
        "result": {"model": "net@3", "verdict": "accepted", "report": report},
    }  # fmt: skip
    return {"job": job | more}


class Read(HTMLParser):
    """Tables by their caption, each as rows of cells; tables that stand in no box that scrolls; the whole text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.cut: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.text = ""
        self._caption = ""
        self.feed(re.sub("<style>.*?</style>", "", text, flags=re.S))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "table" and not any(mark == "scroll" for _, mark in self.open):
            self.cut.append(self.text[-60:])
        if tag == "tr" and sum(name == "table" for name, _ in self.open) == 1:
            self.tables.setdefault(self._caption, []).append([])
        self._caption = (told.get("aria-label") or "") if told.get("class") == "scroll" else self._caption
        if tag not in ("meta", "br"):
            self.open.append((tag, told.get("class") or ""))
        if tag in ("td", "th") and sum(name == "table" for name, _ in self.open) == 1:
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        names = [name for name, _ in self.open]
        if {"td", "th"} & set(names):
            self.tables[self._caption][-1][-1] += data
        if {"th", "h2", "h3"} & set(names):
            self.headings.append(data)


@pytest.fixture(scope="module")
def read() -> Read:
    return Read(page(given(REPORT)))


@pytest.mark.parametrize(
    "report", [REPORT, OLD, {"objective": "size", "batch": 1, "table": [trial(PLAIN)]}, {"table": []}]
)
def test_every_table_has_a_box_of_its_own_to_scroll_in(report: dict[str, Any]) -> None:
    found = Read(page(given(report)))
    assert found.cut == []
    assert found.tables
    assert "j1" in found.text


def test_the_settings_that_were_tried(read: Read) -> None:
    table = read.tables["settings tried"]
    assert table[0] == ["", "runs at once", "threads", "rows of a run", "rows per second", "ms (median)"]
    assert table[1][:4] == ["recommended", "1", "2", "1"]
    assert table[2][:5] == ["–", "2", "2", "64", "129,858"]
    assert "--instances 1 --threads 2" in read.text


def test_the_speed_up_has_its_spread_and_the_load(read: Read) -> None:
    (names, row) = read.tables["speed"]
    told = dict(zip(names, row, strict=True))
    assert (told["times as fast"], told["load of the machine"]) == ("2.50× [2.40, 2.60]", "3.3")
    assert "2.50× [2.40, 2.60]" in "".join(cell for line in read.tables["judged on the test split"] for cell in line)


def test_what_is_drawn_is_no_column() -> None:
    told = Read(page(given({"latency": WINNER["latency"]}, kind="evaluate"))).headings
    assert "median, ms" in told
    assert "histogram" not in told


def test_what_is_said_is_said_once_and_in_words(read: Read) -> None:
    assert read.text.count("Accepted") == 1
    assert SETTINGS in read.text
    assert read.text.count(SETTINGS) == 1
    for name in (PLAIN, TUNED, "nothing at all"):
        assert name not in read.text
    assert "less accurate than “fine-tuned · fp32 · openvino”" in read.text
    keys = [told for told in read.headings if "_" in told and told != "conv_1"]
    assert keys == []
    first = read.tables["judged on the test split"][1]
    assert first[0] == "the answer"
    roles = {line[1]: line[0] for line in read.tables["judged on the test split"][1:]}
    assert roles[WORDS[TUNED]] == "the better baseline"
    assert roles[WORDS[PLAIN]] == "beside it, baseline"


def test_how_the_answer_and_the_baseline_were_trained_and_what_became_of_the_layers() -> None:
    figures = {figure["title"]: figure for figure in found.figures(given(REPORT)["job"], None)}
    loss = figures["Loss while training"]
    assert {s["name"]: s["y"] for s in loss["series"]} == {
        "the answer: loss": [0.5, 0.4, 0.3],
        "the fine-tuned baseline: loss": [0.2, 0.1],
    }
    assert figures["Channels of each layer"]["series"][1]["y"] == [8.0]
    assert "Learning rate while training" not in figures
    layers = Read(page(given(REPORT))).tables["layers of the answer"]
    assert layers == [["layer", "channels", "zeros", "precision"], ["conv_1", "16 → 8", "0.0 %", "int8"]]


def test_where_the_answer_is_the_fine_tuned_baseline_it_is_drawn_once() -> None:
    same = REPORT | {"training": {WON: rows(0.2, 0.1), TUNED: rows(0.2, 0.1)}}
    (loss,) = [f for f in found.trainings(same) if f["title"].startswith("Loss")]
    assert [s["name"] for s in loss["series"]] == ["the answer, the fine-tuned baseline: loss"]


def test_a_histogram_of_each_number_of_rows() -> None:
    report = {"latency": WINNER["latency"], "baseline_latency": WINNER["latency"]}
    (figure,) = found.histograms(report, None)
    assert figure["title"] == "Latency of a run of 1 row"
    assert [s["name"] for s in figure["series"]] == ["this version", "the baseline"]
    assert figure["series"][0]["y"] == [0.6, 0.3, 0.08, 0.0]
    assert len(figure["series"][0]["x"]) == 5
    # What was measured before there were histograms has none; where a report has no latency the version's own serve.
    assert found.histograms({"latency": [{"p50_ms": 1.0, "batch": 1}]}, None) == []
    made = {"metrics": {"latency": WINNER["latency"]}}
    assert [f["title"] for f in found.histograms({}, made)] == ["Latency of a run of 1 row"]


def test_a_busy_machine_and_no_difference_are_said() -> None:
    def said(ratio: float, low: float, high: float) -> str:
        report = {"speedup": {"1": ratio}, "speedup_spread": {"1": {"ratio": ratio, "low": low, "high": high}}}
        return Read(page(given(report, kind="evaluate"))).text

    assert "it cannot be told which of the two is faster" in said(1.05, 0.9, 1.2)
    assert "Measure again when it is quiet" in said(2.0, 1.5, 2.6)
    quiet = said(2.0, 1.9, 2.1)
    assert "cannot be told" not in quiet
    assert "Measure again" not in quiet
    assert "times as fast" in Read(page(given({"speedup": {"1": 2.0}}, kind="evaluate"))).text  # of an older job


def test_from_the_upload_to_the_version() -> None:
    chain = [
        {"ref": "net@1", "made_by": {"kind": "import", "job": "a"}, "changes": {}},
        {"ref": "net@3", "made_by": {"kind": "optimize", "job": "j1"}, "verdict": "accepted",
         "changes": {"bytes": {"before": 2048, "after": 1024}, "format": {"before": "torch", "after": "openvino"}}},
    ]  # fmt: skip
    text = Read(page(given(REPORT) | {"chain": chain})).text
    assert "size 2.0 KiB → 1.0 KiB · format torch → openvino" in text
