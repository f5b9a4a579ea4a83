"""The runtime that teaches: it does what its source tells it to."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import Unavailable
from app.runtimes import BuildOptions, LoadOptions, echo

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))


def loaded(folder: Path, source: str) -> echo.EchoEngine:
    path = folder / "source"
    path.write_text(source)
    echo.build(path, folder, BuildOptions(), lambda share, phase: None)
    engine = echo.load(folder, ROWS, LoadOptions())
    assert isinstance(engine, echo.EchoEngine)
    return engine


def rows(value: float, n: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((n, 2), value, np.float32)}


@pytest.mark.parametrize("source", ["", "no json", "[]", "3", '{"delay_s": "soon"}', '{"unknown": 1}', "{}"])
def test_any_source_will_do(tmp_path: Path, source: str) -> None:
    engine = loaded(tmp_path, source)
    assert engine.behaviour == echo.Behaviour()
    np.testing.assert_array_equal(engine.infer(rows(3))["y"], rows(3)["x"])
    assert engine.seen == [2]


def test_faults_happen_to_the_values_named(tmp_path: Path) -> None:
    engine = loaded(tmp_path, json.dumps({"raise_on": 1, "nan_on": 2, "short_on": 3, "row_s": 1e-6}))
    with pytest.raises(RuntimeError, match="told to fail on 1"):
        engine.infer(rows(1))
    assert np.isnan(engine.infer(rows(2))["y"]).all()
    assert engine.infer(rows(3))["y"].shape == (1, 2)
    np.testing.assert_array_equal(engine.infer(rows(0))["y"], rows(0)["x"])


def test_it_hangs_until_it_is_released(tmp_path: Path) -> None:
    engine = loaded(tmp_path, '{"hang_on": 4}')
    thread = threading.Thread(target=engine.infer, args=(rows(4),))
    thread.start()
    assert engine.hanging.wait(60)
    assert thread.is_alive()
    engine.released.set()
    thread.join(60)
    assert not thread.is_alive()
    engine.close()
    with pytest.raises(Unavailable):
        engine.infer(rows(0))
