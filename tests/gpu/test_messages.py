"""What TensorRT writes into its log, as it reads without where in its source it was written."""

from __future__ import annotations

import pytest

from app.gpu.messages import plain, words


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (  # 8.6
            "1: [stdArchiveReader.cpp::StdArchiveReader::42] Error Code 1: Serialization (Version tag does not match. "
            "Note: Current Version: 213, Serialized Engine Version: 205)",
            "Error Code 1: Serialization (Version tag does not match. "
            "Note: Current Version: 213, Serialized Engine Version: 205)",
        ),
        ("[executionContext.cpp::enqueueV3::2666] Error Code 1: Cuda Runtime", "Error Code 1: Cuda Runtime"),
        (  # 10
            "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (In run at /x/y.cpp:3)",
            "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime",
        ),
        ("CUDA initialization failure with error: 35", "CUDA initialization failure with error: 35"),
        ("--- End node ---", ""),
    ],
)
def test_one_line(said: str, told: str) -> None:
    assert plain(said) == told


def test_all_of_them_on_one_line_and_each_once() -> None:
    assert words(["Error Code 1: a\n\nError Code 1: a", "[x.cpp::y::1] Error Code 2: b."]) == (
        "Error Code 1: a; Error Code 2: b"
    )
    assert words([]) == "TensorRT gave no reason"
