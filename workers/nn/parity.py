"""Whether an engine answers what its source answers, over many inputs, alone and in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Parity, Signature
from app.errors import ParityError
from app.runtimes import Engine
from workers.nn.requests import Plan, Request

# Largest |engine - source| ÷ max(1, max |source|), per precision. In deep networks of 8 bits a rounding that falls the
# other way grows: 0.14 was seen where accuracy was that of the source.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 2e-1}
INPUTS, ALONE = 64, 8


@dataclass
class Worst:
    """The largest difference of every output so far, and the scale that it is measured on."""

    apart: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    same: int = 0
    compared: int = 0

    def add(self, engine: Mapping[str, Any], source: Mapping[str, Any], how: str) -> None:
        for name, wanted in source.items():
            apart, scale = difference(engine[name], wanted)
            if apart > self.apart.get(name, -1.0):
                self.apart[name], self.where[name] = apart, how
            self.scale[name] = max(self.scale.get(name, 1.0), scale)

    def relative(self) -> tuple[float, str]:
        """The largest |engine - source| ÷ max(1, max |source|) of any output, and where it was."""
        found = {name: apart / self.scale[name] for name, apart in self.apart.items()}
        name = max(found, key=lambda n: found[n])
        return found[name], f"{name!r}, {self.where[name]}"

    def count(self, engine: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
        """How often both choose the same class."""
        if source.ndim == 2 and source.shape[1] > 1 and source.dtype.kind == "f" and engine.shape == source.shape:
            self.same += int((engine.argmax(1) == source.argmax(1)).sum())
            self.compared += len(source)


def difference(engine: npt.NDArray[Any], source: npt.NDArray[Any]) -> tuple[float, float]:
    """(max |engine - source|, max |source|); for integers and text the share that differs, and 1."""
    if engine.shape != source.shape:
        return np.inf, 1.0
    if not source.size:
        return 0.0, 1.0
    if source.dtype.kind not in "f":
        return float((engine != source).mean()), 1.0
    have, wanted = engine.astype(np.float64), source.astype(np.float64)
    alike = (have == wanted) | (np.isnan(have) & np.isnan(wanted))  # infinities and NaN at the same places agree
    finite = np.abs(wanted[np.isfinite(wanted)])
    scale = float(finite.max()) if finite.size else 1.0
    if not np.isfinite(have[~alike]).all() or not np.isfinite(wanted[~alike]).all():
        return np.inf, scale
    return float(np.abs(have[~alike] - wanted[~alike]).max(initial=0.0)), scale


def compare(
    engine: Engine,
    signature: Signature,
    answer: Callable[[list[Request]], list[Request]],
    plan: Plan,
    rows: Sequence[npt.NDArray[Any]],
    max_batch: int,
    tolerance: float,
    seed: int,
) -> Parity:
    """At least 64 inputs: the rows given, then random ones. Raises ParityError beyond the tolerance.

    answer: many requests → the source's answers. rows: of the model's only input, each with its batch axis.
    """
    rng = np.random.default_rng(seed)
    name = signature.inputs[0].name
    singles: list[Request] = [{name: row} for row in rows]
    singles += [plan.draw(rng) for _ in range(max(INPUTS - len(singles), INPUTS // 4))]
    worst = Worst()
    if signature.batched:
        wanted_rows = _split(_in_batches(answer, singles))
        _alone(engine, worst, singles[:ALONE] + singles[-ALONE:], wanted_rows[:ALONE] + wanted_rows[-ALONE:])
        _together(engine, worst, singles, wanted_rows, max_batch)
    else:
        wanted_rows = answer(singles)
        _alone(engine, worst, singles, wanted_rows)
    relative, where = worst.relative()
    found = Parity(
        n=len(singles),
        max_abs_diff=min(max(worst.apart.values()), 1e300),
        max_rel_diff=min(relative, 1e300),
        tolerance=tolerance,
        agreed=worst.same / worst.compared if worst.compared else None,
    )
    if not relative <= tolerance:
        raise ParityError(
            "the engine disagrees with its source: |engine - source| ÷ max(1, max |source|) reaches "
            f"{relative:.3g} ({where}) over {found.n} inputs, where {tolerance:g} is tolerated",
            hint="choose a higher precision, or say a larger `tolerance` if the accuracy is what counts",
        )
    return found


def _alone(engine: Engine, worst: Worst, requests: list[Request], wanted: list[Request]) -> None:
    for request, source in zip(requests, wanted, strict=True):
        have = engine.infer(request)
        worst.add(have, source, "alone")
        first = next(iter(source))
        worst.count(have[first], source[first])


def _together(engine: Engine, worst: Worst, singles: list[Request], wanted: list[Request], max_batch: int) -> None:
    """Batches of the largest size, and one of what is left: the rows go round where they are too few."""
    size = min(max_batch, 4096)
    order = [i % len(singles) for i in range(max(size, len(singles)))]
    for start in range(0, len(order), size):
        some = order[start : start + size]
        have = engine.infer(_join([singles[i] for i in some]))
        source = _join([wanted[i] for i in some])
        worst.add(have, source, f"in a batch of {len(some)}")
        if start == 0:
            first = next(iter(source))
            worst.count(have[first], source[first])


def _in_batches(
    answer: Callable[[list[Request]], list[Request]], singles: list[Request], size: int = 32
) -> list[Request]:
    return answer([_join(singles[i : i + size]) for i in range(0, len(singles), size)])


def _join(requests: Sequence[Request]) -> Request:
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


def _split(batches: list[Request]) -> list[Request]:
    """Batches → single rows."""
    return [
        {name: value[i : i + 1] for name, value in batch.items()}
        for batch in batches
        for i in range(len(next(iter(batch.values()))))
    ]
