"""What pycuda lacks, against a libcuda that writes down what it is asked."""

from __future__ import annotations

from typing import Any

import pytest

from app.gpu.libcuda import CaptureFailed, Failed, Libcuda


class Recorder:
    """Answers every call with the code that is set for it, and 0."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.calls = codes, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in ("cuStreamEndCapture", "cuGraphInstantiateWithFlags") and not self.codes.get(name):
                pointer = arguments[1] if name == "cuStreamEndCapture" else arguments[0]
                pointer._obj.value = 7 if name == "cuStreamEndCapture" else 8
            return self.codes.get(name, 0)

        return call


def test_a_graph_is_recorded_made_launched_and_ended() -> None:
    recorder = Recorder()
    cuda = Libcuda(recorder)  # type: ignore[arg-type]
    handle = cuda.capture(5, lambda: recorder.calls.append("work"))
    assert handle == 8
    cuda.launch(handle, 5)
    cuda.destroy(handle)
    assert recorder.calls == [
        "cuStreamBeginCapture_v2", "work", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy",
        "cuGraphLaunch", "cuGraphExecDestroy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ({"cuStreamBeginCapture_v2": 900}, "cuStreamBeginCapture failed with CUDA error 900"),
        ({"cuStreamEndCapture": 901}, "cuStreamEndCapture failed with CUDA error 901"),
        ({"cuGraphInstantiateWithFlags": 1}, "cuGraphInstantiate failed with CUDA error 1"),
    ],
)
def test_what_cannot_be_recorded(codes: dict[str, int], told: str) -> None:
    recorder = Recorder(**codes)
    with pytest.raises(CaptureFailed, match=told):
        Libcuda(recorder).capture(5, lambda: None)  # type: ignore[arg-type]
    assert ("cuStreamEndCapture" in recorder.calls) == ("cuStreamBeginCapture_v2" not in codes)


def test_work_that_fails_ends_the_recording() -> None:
    recorder = Recorder()

    def work() -> None:
        raise ValueError("not while recording")

    with pytest.raises(CaptureFailed, match="not while recording"):
        Libcuda(recorder).capture(5, work)  # type: ignore[arg-type]
    assert recorder.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphDestroy"]


@pytest.mark.parametrize(
    ("codes", "lost"),
    [
        ({}, False),
        ({"cuStreamCreate": 2}, False),
        ({"cuStreamSynchronize": 906}, False),
        ({"cuStreamCreate": 700}, True),
        ({"cuStreamSynchronize": 719}, True),
    ],
    ids=str,
)
def test_whether_a_gpu_is_lost_is_asked_of_an_empty_stream(codes: dict[str, int], lost: bool) -> None:
    recorder = Recorder(**codes)
    assert Libcuda(recorder).is_lost() is lost  # type: ignore[arg-type]
    asked = ["cuStreamCreate", "cuStreamSynchronize", "cuStreamDestroy_v2"]
    assert recorder.calls == (asked[:1] if "cuStreamCreate" in codes else asked)


def test_memory_is_locked_and_errors_have_their_code() -> None:
    recorder = Recorder(cuGraphLaunch=700)
    cuda = Libcuda(recorder)  # type: ignore[arg-type]
    cuda.lock(4096, 10)
    cuda.unlock(4096)
    assert recorder.calls == ["cuMemHostRegister_v2", "cuMemHostUnregister"]
    with pytest.raises(Failed, match="cuGraphLaunch failed with CUDA error 700") as failed:
        cuda.launch(8, 5)
    assert not failed.value.is_out_of_memory
    with pytest.raises(Failed) as failed:
        Libcuda(Recorder(cuMemHostRegister_v2=2)).lock(4096, 10)  # type: ignore[arg-type]
    assert failed.value.is_out_of_memory
