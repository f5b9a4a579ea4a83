"""The page of a job as a browser gets it: whole, escaped, asking nobody for anything; drawn in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from app.report.page import page

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Parsed(HTMLParser):
    """Whether tags nest, and what there is."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cut = 0  # tables that stand in no box that scrolls: a phone would show their left half
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.cut += not any("scroll" in name for name in self.open)
        if tag not in VOID:
            self.open.append(f"{tag}.scroll" if ("class", "scroll") in attrs else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().removesuffix(".scroll") == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def job(**fields: Any) -> dict[str, Any]:
    told = {
        "id": "j1", "kind": "optimize", "model": "net@1", "dataset": "digits@1", "status": "succeeded",
        "spec": {"kind": "optimize", "model": "net@1"}, "history": [], "result": None, "error": None, "attempt": 1,
        "warnings": [], "started_at": "2026-01-05T09:00:00.210Z", "finished_at": "2026-01-05T09:21:04.870Z",
    }  # fmt: skip
    return told | fields


FRONT = {
    "title": "Accuracy against latency", "kind": "points",
    "x": {"label": "ms", "log": True}, "y": {"label": "accuracy"},
    "series": [
        {"name": "tried", "x": [0.2, 0.5, None], "y": [0.8, 0.9, 0.7], "labels": ["$a_b", "x", "y"]},
        {"name": "_front", "x": [0.3, 1], "y": [0.88, 0.9], "low": [0.86, None], "high": [0.9, 0.92], "line": True},
    ],
    "note": "Intervals are Wilson's.",
}  # fmt: skip
FIGURES = [
    FRONT,
    {"title": "Sensitivity", "kind": "lines", "x": {"label": "amount"}, "y": {"label": "accuracy"},
     "series": [{"name": f"layer{i}", "x": [0.1, 0.5, 0.9], "y": [0.9, 0.8, None]} for i in range(10)]},
    {"title": "Importances", "kind": "bars", "x": {"label": ""}, "y": {"label": "share"},
     "series": [{"name": "share", "x": ["train.lr", "prune.amount"], "y": [0.7, 0.3], "low": [0.6, 0.2],
                 "high": [0.8, 0.4]}]},
    {"title": "Latency", "kind": "histogram", "x": {"label": "ms"}, "y": {"label": "runs"},
     "series": [{"name": "runs", "x": [1.0, 1.1, 1.1, 1.2, 5.0]}]},
    {"title": "Edges", "kind": "histogram", "x": {"label": "ms"}, "y": {"label": "runs"},
     "series": [{"name": "runs", "x": [1, 2, 3], "y": [4, 5]}]},
    {"title": "Zero below a log axis", "kind": "lines", "x": {"log": True}, "y": {"log": True},
     "series": [{"name": "s", "x": [0, 1], "y": [-1, 1]}]},
    {"title": "One point", "kind": "lines", "x": {}, "y": {}, "series": [{"name": "s", "x": [1], "y": [1]}]},
    {"title": "Same value", "kind": "histogram", "x": {}, "y": {}, "series": [{"name": "s", "x": [2, 2, 2]}]},
    {"title": "By day", "kind": "points", "series": [{"name": "s", "x": ["mon", "tue"], "y": [1, 2]}]},
]  # fmt: skip
BROKEN = [
    None, {}, {"kind": "pie", "title": "cake"}, {"kind": "lines"}, {"kind": "bars", "series": "none"},
    {"kind": "points", "series": [{"x": ["a"], "y": ["b"]}]}, {"kind": "lines", "series": [{"x": [[1]], "y": [{}]}]},
]  # fmt: skip
REPORT = {
    "figures": FIGURES + BROKEN,
    "verdict": {
        "verdict": "unproven", "against": "net@1", "samples_needed": 23040, "told": "Unproven: …",
        "difference": {"name": "accuracy", "difference": -0.0031, "low": -0.0112, "high": 0.005, "n": 360,
                       "confidence": 0.95, "method": "Tango's score interval"},
    },
    "max_accuracy_drop": 0.01,
    "notes": ["Zeros give no speed.", EVIL],
    "channels": {"conv1": {"before": 10, "after": 5}, EVIL: {"before": 20, "after": 10}},
    "layers": {"conv1": {"sparsity_before": 0.0, "sparsity_after": 0.5}},
    "latency": [{"runtime": "openvino", "batch": 1, "p50_ms": 0.3, "p95_ms": 0.4, "p99_ms": 0.5, "runs": 50,
                 "histogram": {"low": 0.2, "high": 0.6, "counts": [10, 20, 15, 4]}}],
    "baseline_latency": [{"runtime": "openvino", "batch": 1, "p50_ms": 1.3, "p95_ms": 1.4, "p99_ms": 1.5}],
    "parameters": {"before": 272474, "after": 68000},
    "table": [{"name": EVIL, "speedup": 2.5}],
    "nothing": None,
    "control": "a\x00b",
}  # fmt: skip
HISTORY = [{"epoch": i + 1, "loss": 1 / (i + 1), "val_accuracy": None if i == 1 else 0.5 + i / 10} for i in range(4)]
NODE = {"ref": EVIL, "kind": "import", "format": "torch", "job": "j0", "bytes": 10, "children": []}
TREE = [NODE | {"ref": "net@1", "children": [NODE | {"ref": "net@2", "job": "j1", "verdict": "accepted"}]}]
WHOLE = {
    "job": job(result={"model": "net@2", "verdict": "unproven", "report": REPORT}, history=HISTORY),
    "source": {"ref": "net@1", "bytes": 100}, "made": {"ref": "net@2", "bytes": 25, "metrics": {}}, "lineage": TREE,
    "recipe": {"root": "net@1", "complete": True, "chain": [{"kind": "prune", "layers": [EVIL]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as the child prints it, where a home cannot be written into."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o500)
    fonts = tmp_path_factory.mktemp("fonts")
    ran = subprocess.run(
        [sys.executable, "-m", "app.report"],
        input=json.dumps(WHOLE).encode(),
        capture_output=True,
        env=os.environ | {"HOME": str(home), "MPLCONFIGDIR": str(fonts)},
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert list(home.iterdir()) == []
    assert b"could not be drawn" not in ran.stderr
    return ran.stdout.decode()


def test_it_stands_alone(drawn: str) -> None:
    parsed = Parsed(drawn)
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "://" not in (value or "")
            if name in ("href", "src"):
                assert (value or "").startswith("#")
    assert "@import" not in drawn
    assert re.findall(r"url\((?!#)", drawn) == []
    viewport = next(m for m in parsed.named("meta") if m.get("name") == "viewport")
    assert str(viewport["content"]).startswith("width=device-width")


def test_everything_is_escaped(drawn: str) -> None:
    assert "<script" not in drawn
    assert "alert(1)&lt;/script&gt;" in drawn
    assert drawn.count("&lt;script&gt;") >= 5  # a note, a channel, a row, a node, a layer


def test_figures_fit_a_phone_and_are_told_in_words(drawn: str) -> None:
    parsed = Parsed(drawn)
    drawings = parsed.named("svg")
    # those of the pass, and: the difference, loss, accuracy, zeros, channels, latency as a histogram and by batch
    assert len(drawings) == len(FIGURES) + 7
    for drawing in drawings:
        assert "width" not in drawing
        assert (
            float(str(drawing["viewbox"]).split()[2]) <= 300
        )  # as many units as a phone has pixels: text keeps its size
        assert drawing["role"] == "img"
        assert drawing["aria-label"]
    ids = [value for _, attributes in parsed.tags for name, value in attributes.items() if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', drawn))
    assert used <= set(ids)
    assert drawn.count("cannot be drawn") == len(BROKEN)
    assert "currentColor" in drawn
    assert "DejaVu" not in drawn
    assert "mathdefault" not in drawn
    assert "$a_b" in drawn


def test_no_table_is_cut(drawn: str) -> None:
    assert Parsed(drawn).cut == 0
    assert "overflow-x: auto" in drawn


def test_the_verdict_in_plain_words(drawn: str) -> None:
    said = " ".join(Parsed(drawn).text)
    for line in (
        "Unproven. It may keep its accuracy",
        "net@2 is 0.31 points less accurate than net@1 on the same 360 samples.",
        "With 95 % confidence the true difference lies between -1.12 points and +0.50 points.",
        "1 point may be lost; the interval reaches beyond that.",
        "About 23,040 samples would decide it",
        'It can be deployed only with "force": true.',
    ):
        assert line in said


def test_sections(drawn: str) -> None:
    said = " ".join(Parsed(drawn).text)
    for word in (
        "Before and after",
        "Lineage",
        "Recipe",
        "enginesmith replay net@2 --on OTHER",
        "Asked for",
        "21 min 5 s",
    ):
        assert word in said
    assert "after ÷ before" in said
    assert '<span class="here"><strong>net@2' in drawn


def test_without_drawing_the_figures_are_tables() -> None:
    text = page(WHOLE, excuse="They could not be drawn.")
    parsed = Parsed(text)
    assert parsed.named("svg") == []
    assert "They could not be drawn." in text
    assert len(parsed.named("figure")) == len(FIGURES) + 7
    assert "0.88" in text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"status": "queued", "started_at": None, "finished_at": None},
        {"status": "failed", "error": {"status": 422, "code": "bad", "detail": EVIL, "hint": "x", "errors": []}},
        {"result": {"model": None, "verdict": "rejected", "report": {}}},
        {
            "result": {
                "model": "net@2",
                "verdict": None,
                "report": {"figures": {"a": 1}, "notes": "text", "layers": [1]},
            }
        },
        {"result": {"report": {"difference": "far", "verdict": 3, "channels": {"a": 1}, "latency": "fast"}}},
        {"result": {"report": {"rows": [{"a": 1, "b": [{"c": 1}, {"c": [{"d": 1}]}]}], "lists": [[[{"a": 1}], 2], 3]}}},
        {"result": {"report": {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": [1, [2, [3]]]}}}}}}}}}}},
        {"history": [{"epoch": 1, "loss": float("nan")}, {"text": "x"}, {"epoch": "two", "loss": 1e400}]},
        {"spec": {}, "model": None, "kind": "import"},
    ],
)
def test_whatever_a_job_says_there_is_a_page(fields: dict[str, Any]) -> None:
    text = page({"job": job(**fields)})
    assert Parsed(text).cut == 0
    assert "<script" not in text


def test_how_an_engine_was_built() -> None:
    layers = [
        {"name": "conv1", "type": "gemm", "precision": "fp16", "tactic": "xmma", "products": ["node_a"], "ms": 0.75},
        {"name": EVIL, "type": "kgen", "precision": "fp32", "tactic": None, "products": [], "ms": 0.25},
    ]
    build = {
        "precisions": {"fp16": 1, "fp32": 1}, "layers": layers, "timed_with": {"x": [8, 3]},
        "kept_fp32": {"wide": "its weight w reaches 1e+05"}, "sparse": {"layers": 0, "of": 1, "used": False},
    }  # fmt: skip
    shown = page({"job": job(kind="convert", result={"model": "net@2", "report": {"build": build}})})
    text = " ".join(Parsed(shown).text)
    for wanted in (
        "How it was built",
        "75.0 %",
        "node_a",
        "Timed one by one with x [8, 3]: 1 ms in all",
        "reaches 1e+05",
    ):
        assert wanted in text, wanted
    assert "kept fp32" not in text  # not once more among the details
    assert EVIL not in shown
    untimed = build | {"layers": [{**layer, "ms": None} for layer in layers] * 20, "kept_fp32": {}, "timed_with": {}}
    shown = page({"job": job(kind="convert", result={"model": "net@2", "report": {"build": untimed}})})
    text = " ".join(Parsed(shown).text)
    assert "Layers of the engine (40)" in text
    assert "share of the time" not in text
    for broken in ({"build": 1}, {"build": {}}, {"build": {"layers": [1, {}], "kept_fp32": 3}}):
        Parsed(page({"job": job(kind="convert", result={"report": broken})}))
