"""A build begins with what is known of kernels, and leaves it with what others have found out meanwhile.

The calls are TensorRT for RTX's real ones, which do nothing there since 1.2, as it says itself; what TensorRT answers
otherwise is played.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.runtimes import BuildOptions, tensorrt_rtx
from app.runtimes._trt import building
from app.runtimes._trt.flavour import RTX


class Kept:
    """As in the store. meanwhile: what somebody else writes before this build is over."""

    def __init__(self, known: bytes = b"", meanwhile: bytes | None = None) -> None:
        self.known, self.meanwhile = known, meanwhile
        self.refused = 0

    def read(self) -> bytes:
        return self.known

    def write(self, measured: bytes) -> bool:
        if self.meanwhile is not None:
            self.known, self.meanwhile = self.meanwhile, None
            self.refused += 1
            return False
        self.known = measured
        return True


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("known", [b"", b"damaged" * 9], ids=["none", "damaged"])
def test_a_real_build(known: bytes, tmp_path: Path) -> None:
    w = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 4), ("y", 2)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [made], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "source.onnx").write_bytes(model.SerializeToString())
    folder = tmp_path / "engine"
    folder.mkdir()
    kept = Kept(known, meanwhile=b"another's")
    tensorrt_rtx.build(tmp_path / "source.onnx", folder, BuildOptions(timing_cache=kept), lambda *_: None)
    assert (folder / "model.plan").stat().st_size > 1000
    assert kept.refused == 1
    assert kept.known not in (b"", known, b"another's")


class Cache:
    """What a cache knows; `gpu` alone takes it."""

    def __init__(self, text: str) -> None:
        self.gpu, _, kernels = text.partition(": ")
        self.kernels = set(kernels.split())

    def combine(self, other: Cache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.gpu != self.gpu:
            return False
        self.kernels |= other.kernels
        return True

    def serialize(self) -> bytes:
        return f"{self.gpu}: {' '.join(sorted(self.kernels))}".encode()


class Config:
    """gives_none: what cannot be read gives no cache at all, instead of an empty one."""

    def __init__(self, gpu: str, gives_none: bool = False) -> None:
        self.gpu, self.gives_none = gpu, gives_none
        self.cache: Any = None

    def create_timing_cache(self, serialized: bytes) -> Cache | None:
        if b": " not in serialized:
            return None if serialized and self.gives_none else Cache(f"{self.gpu}: ")
        return Cache(serialized.decode())

    def set_timing_cache(self, cache: Cache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache if cache.gpu == self.gpu else self.cache
        return cache.gpu == self.gpu


@pytest.mark.parametrize(
    ("known", "meanwhile", "kept"),
    [
        (b"", None, b"a: new"),
        (b"a: old", None, b"a: new old"),
        (b"a: old", b"a: other", b"a: new old other"),
        (b"b: old", None, b"a: new"),
        (b"a: old", b"b: other", b"a: new old"),
        (b"damaged", None, b"a: new"),
    ],
)
@pytest.mark.parametrize("gives_none", [False, True])
def test_what_is_kept(known: bytes, meanwhile: bytes | None, kept: bytes, gives_none: bool) -> None:
    config, store = Config("a", gives_none), Kept(known, meanwhile)
    cache = building._timing_cache(config, store)
    assert cache is config.cache
    cache.kernels.add("new")
    building._keep(config, cache, store)
    assert store.known == kept


def test_nothing_is_asked_for_without_a_place_to_keep_it() -> None:
    assert building._timing_cache(None, None) is None


def test_builders_that_never_come_to_an_end_are_given_up() -> None:
    class Busy(Kept):
        def write(self, measured: bytes) -> bool:
            self.refused += 1
            return False

    config, store = Config("a"), Busy()
    building._keep(config, building._timing_cache(config, store), store)
    assert store.refused == 3
