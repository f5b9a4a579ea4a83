"""What is sent: rows of a fixed seed, the same numbers as JSON text, and pictures as JPEG."""

from __future__ import annotations

import io

import numpy as np
import orjson

from benchmarks.peers import SHAPES, Rows, Sample

PICTURE = (480, 360)  # width, height


def samples(model: str, count: int) -> list[Sample]:
    """`count` requests that differ, of one row each."""
    random = np.random.default_rng(7)
    return [_sample(random, SHAPES[model]) for _ in range(count)]


def _sample(random: np.random.Generator, shape: tuple[int, ...]) -> Sample:
    pixels = random.integers(0, 256, (1, *shape))
    x: Rows = (pixels / np.float32(255)).astype(np.float32)
    return Sample(x, orjson.dumps(x, option=orjson.OPT_SERIALIZE_NUMPY), jpeg(random))


def jpeg(random: np.random.Generator) -> bytes:
    """A picture as smooth as a photograph, about 40 kB."""
    from PIL import Image

    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3)).astype(np.uint8))
    picture = np.asarray(coarse.resize(PICTURE, Image.Resampling.BICUBIC), np.float32)
    noisy = picture + random.normal(0, 8, picture.shape)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()
