"""The verdict of a version against its baseline: accepted, rejected or unproven, and what would decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from typing import Any, Literal

from workers.nn.tango import interval

MOST = 10**9  # rows; what would take more is not decidable


@dataclass(frozen=True)
class Verdict:
    """difference: as `quality.paired` gives it. samples_needed: rows that would turn `unproven` into `accepted`, were
    the shares of disagreements to stay as they are; None where no number would, or none is needed."""

    verdict: Literal["accepted", "rejected", "unproven"]
    max_accuracy_drop: float
    difference: Mapping[str, Any]
    samples_needed: int | None
    told: str

    def told_whole(self) -> dict[str, Any]:
        return asdict(self)


def reported(found: Mapping[str, Any], against: str | None, split: str) -> dict[str, Any]:
    """A report's `verdict`, with the same fields whatever the job. found: as `told_whole` gives them. against: what it
    was compared with, on that split."""
    fields = ("verdict", "told", "difference", "max_accuracy_drop", "samples_needed")
    return {name: found.get(name) for name in fields} | {"against": against, "split": split}


def judge(difference: Mapping[str, Any], max_accuracy_drop: float) -> Verdict:
    """accepted: the whole interval of the difference lies above -max_accuracy_drop (non-inferiority). rejected: the
    difference itself lies below it. unproven: in between."""
    found, low, n = float(difference["difference"]), float(difference["low"]), int(difference["n"])
    bound = -max_accuracy_drop
    in_points = difference["name"] == "accuracy"
    # Figures such as r2 may differ by less than a hundredth and still be told apart.
    scale, form, unit = (100.0, ".2f", " points") if in_points else (1.0, ".3g", f" of {difference['name']}")
    figures = (
        f"{found * scale:+{form}}{unit} [{low * scale:+{form}}, {float(difference['high']) * scale:+{form}}] "
        f"over {n} rows; a loss of up to {max_accuracy_drop * scale:{form}} is allowed"
    )
    if low >= bound:
        return Verdict("accepted", max_accuracy_drop, difference, None, f"Accepted: {figures}.")
    if found < bound:
        return Verdict("rejected", max_accuracy_drop, difference, None, f"Rejected: {figures}.")
    needed = samples_needed(difference, max_accuracy_drop)
    more = f"about {needed} rows would decide it" if needed else "no number of rows would decide it as it stands"
    return Verdict("unproven", max_accuracy_drop, difference, needed, f"Unproven: {figures}; {more}.")


def samples_needed(difference: Mapping[str, Any], max_accuracy_drop: float) -> int | None:
    """The fewest rows with which the same shares would be accepted; None where more than 10⁹, or none."""
    found, n, confidence = float(difference["difference"]), int(difference["n"]), float(difference["confidence"])
    if found <= -max_accuracy_drop or n == 0:
        return None
    if "only_model_right" in difference:
        won, lost = difference["only_model_right"] / n, difference["only_baseline_right"] / n

        def low(rows: int) -> float:
            return interval(won * rows, lost * rows, rows, confidence)[0]
    else:
        width = found - float(difference["low"])

        def low(rows: int) -> float:
            return found - width * sqrt(n / rows)

    return _fewest(lambda rows: low(rows) >= -max_accuracy_drop, n)


def fewest_rows(max_accuracy_drop: float, confidence: float) -> int | None:
    """With fewer rows than these not even two models that never disagree would be accepted."""
    return _fewest(lambda rows: interval(0, 0, rows, confidence)[0] >= -max_accuracy_drop, 1)


def _fewest(enough: Callable[[int], bool], start: int) -> int | None:
    high = max(1, start)
    while not enough(high):
        high *= 2
        if high > MOST:
            return None
    low = 0
    while high - low > 1:
        middle = ceil((low + high) / 2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
