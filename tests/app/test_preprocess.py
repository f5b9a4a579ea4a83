import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from app.errors import BadTensor
from app.intake.preprocess import Preprocess, apply, parse

RANDOM = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def png(pixels: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def test_the_default_is_rgb_from_0_to_1() -> None:
    row = apply(png(RANDOM), Preprocess())
    assert (row.dtype, row.shape, row.flags.c_contiguous) == (np.float32, (3, 6, 8), True)
    assert np.allclose(row, RANDOM.transpose(2, 0, 1) / 255)


def test_every_step() -> None:
    preprocess = parse(
        {"crop": [4, 6], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 4], "scale": 1.0, "layout": "NHWC", "order": "BGR"}
    )
    row = apply(png(RANDOM), preprocess)
    expected = (RANDOM[1:5, 1:7, ::-1].astype(np.float64) - [0.1, 0.2, 0.3]) / [1, 2, 4]
    assert np.allclose(row, expected, atol=1e-4)
    assert preprocess.shape() == (4, 6, 3) == row.shape


def test_grey_and_bytes() -> None:
    row = apply(png(RANDOM[..., 0]), parse({"channels": "grayscale", "dtype": "uint8"}))
    assert (row.dtype, row.shape) == (np.uint8, (1, 6, 8))
    assert np.array_equal(row[0], RANDOM[..., 0])
    assert parse({"grayscale": True}).channels == 1


def test_resizing() -> None:
    assert apply(png(RANDOM), parse({"resize": [3, 5]})).shape == (3, 3, 5)
    assert apply(png(RANDOM), parse({"resize": 12})).shape == (3, 12, 16)
    assert apply(png(RANDOM), parse({"resize": 12, "crop": [10, 10]})).shape == (3, 10, 10)


def test_the_same_after_being_stored() -> None:
    preprocess = parse({"resize": [4, 4], "mean": 0.5, "std": [0.5]})
    assert parse(preprocess.model_dump(mode="json", exclude_none=True)) == preprocess


@pytest.mark.parametrize("data", [b"", b"no image", png(RANDOM)[:50], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(BadTensor, match="cannot be decoded"):
        apply(data, Preprocess())


def test_images_of_sixteen_bits_are_refused() -> None:
    with pytest.raises(BadTensor, match="8 bits"):
        apply(png(np.zeros((4, 4), np.uint16)), Preprocess(channels=1))


@pytest.mark.parametrize(
    "given",
    [{"std": 0}, {"std": [1, 0, 1]}, {"mean": [1, 2]}, {"resize": [1]}, {"scale": float("nan")}, {"colour": 1},
     {"dtype": "uint8", "mean": 1}, {"resize": [100_000, 1]}, {"channels": 4}],
)  # fmt: skip
def test_bad_records(given: Any) -> None:
    with pytest.raises(ValidationError):
        parse(given)
