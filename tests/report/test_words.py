"""Verdicts and figures in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from app.report import words


def difference(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"name": "accuracy", "difference": value, "low": low, "high": high, "n": 10_000, "confidence": 0.95} | more


@pytest.mark.parametrize(
    ("word", "told", "expected"),
    [
        ("accepted", difference(0.002, -0.004, 0.008), "the whole interval lies within that"),
        ("rejected", difference(-0.03, -0.04, -0.02), "the loss itself is beyond that"),
        ("unproven", difference(-0.005, -0.02, 0.01), "the interval reaches beyond that"),
    ],
)
def test_where_the_interval_lies(word: str, told: dict[str, Any], expected: str) -> None:
    said = " ".join(words.verdict({"difference": told, "max_accuracy_drop": 0.01, "baseline": "a@1"}, word, "a@2"))
    assert expected in said
    assert ("force" in said) == (word != "accepted")
    assert ("No number of samples" in said) == (word == "unproven")


def test_no_difference_at_all() -> None:
    said = words.verdict({"difference": difference(0.0, -0.01, 0.01)}, None, "a@2")
    assert said[0] == "a@2 is exactly as accurate as its baseline on the same 10,000 samples."


def test_r2_has_no_points() -> None:
    told = difference(-0.02, -0.05, 0.01, name="r2")
    said = " ".join(words.verdict({"difference": told, "max_accuracy_drop": 0.1}, "accepted", "a@2"))
    assert "points" not in said
    assert "0.02 less accurate" in said


def test_nothing_to_say() -> None:
    assert words.verdict({}, None, None) == []
    assert words.verdict({"difference": {"difference": float("nan")}}, None, None) == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (41e6, "41,000,000"),
        (float("inf"), "–"), (10**30, "1e+30"), (123456.7, "123,457"), ("x", "x"),
    ],
)  # fmt: skip
def test_figures(value: Any, told: str) -> None:
    assert words.figure(value) == told


@pytest.mark.parametrize(("value", "told"), [(0.42, "0.42 s"), (59, "59 s"), (125, "2 min 5 s"), (4800, "1 h 20 min")])
def test_seconds(value: float, told: str) -> None:
    assert words.seconds(value) == told
