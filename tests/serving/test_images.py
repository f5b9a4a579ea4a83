"""Images as bodies: hostile ones are refused with the reason, unusual ones are read right."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from app.domain.records import Tensor
from app.errors import BadTensor, DeadlineExceeded, Overloaded
from app.intake import pictures
from app.intake.preprocess import apply, parse
from app.serving.decoding import Decoding

from .test_predict import lane, serve_lane
from .test_wire import PICTURE

PLAIN = parse({"scale": 1})
# A picture whose every corner differs.
CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :12], CORNERS[:8, 12:], CORNERS[8:, :12] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data or zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def jpeg_of(width: int, height: int) -> bytes:
    data = encoded(Image.fromarray(CORNERS), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png_of(60_000, 60_000), "pixels"),
        (png_of(10_000, 9_500), "pixels"),  # Pillow only warns of it
        (png_of(2**31 - 1, 2**31 - 1), "pixels"),
        (jpeg_of(65_000, 65_000), "pixels"),
        (png_of(7000, 7000), "truncated"),
        (png_of(0, 10), "cannot be decoded"),
        (encoded(Image.fromarray(CORNERS), "JPEG")[:-200], "truncated"),
        (encoded(Image.fromarray(CORNERS), "JPEG")[:20], "cannot be decoded"),
        (encoded(Image.fromarray(CORNERS))[:60], "cannot be decoded"),
        (encoded(Image.fromarray(CORNERS), "JPEG").replace(b"\xff\xda", b"\xff\xda" * 300, 1), "scans"),
        (b"\xff\xd8" + b"\xff" * 1000, "cannot be decoded"),
        (b"GIF89a" + b"\xff" * 100, "cannot be decoded"),
        (b"%PDF-1.4", "none of JPEG"),
        (b"", "none of JPEG"),
        (encoded(Image.fromarray(CORNERS), "TIFF"), "none of JPEG"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16))), "8 bits"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadTensor, match=f"(?i){said}") as caught:
        apply(data, PLAIN)
    assert caught.value.hint


def read(data: bytes, **preprocess: Any) -> np.ndarray:
    return apply(data, parse({"scale": 1, "layout": "NHWC"} | preprocess))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_by_its_exif(orientation: int) -> None:
    turned = {
        1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1], 5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS, 1), 7: np.rot90(CORNERS, 2).transpose(1, 0, 2), 8: np.rot90(CORNERS, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(turned)), "PNG", exif=exif)
    np.testing.assert_array_equal(read(data), CORNERS)


def test_a_broken_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.fromarray(CORNERS), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x01" * 30)
    np.testing.assert_array_equal(read(data), CORNERS)


def test_modes() -> None:
    picture = Image.fromarray(CORNERS)
    palette = picture.quantize(8)
    see_through = palette.copy()
    see_through.info["transparency"] = bytes([0, 128, 255])
    frames = [picture.quantize(8), Image.fromarray(CORNERS[::-1].copy()).quantize(8)]
    for data in (
        encoded(palette),
        encoded(see_through, transparency=bytes([0, 128, 255])),
        encoded(picture.convert("RGBA")),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),  # the first one counts
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(read(data), CORNERS)
    grey = Image.fromarray(CORNERS[..., 0])
    assert read(encoded(grey)).shape == (16, 24, 3)
    assert read(encoded(grey.convert("LA")), channels=1).shape == (16, 24, 1)
    assert set(np.unique(read(encoded(grey.convert("1")), channels=1))) == {0, 255}
    # Four colours as printers have them, also when Adobe has turned them over.
    found = read(encoded(picture.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - CORNERS).mean() < 12


def test_every_step_is_as_in_plain_numpy() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    how = {"resize": 40, "crop": [32, 36], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    picture = Image.fromarray(pixels).resize((round(83 * 40 / 61), 40), Image.Resampling.BILINEAR)
    left, top = (picture.width - 36) // 2, (picture.height - 32) // 2
    cut = np.asarray(picture.crop((left, top, left + 36, top + 32)))
    scaled = cut.astype(np.float32) * np.float32(1 / 255)
    wanted = (scaled - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    for order in ("RGB", "BGR"):
        for layout in ("NCHW", "NHWC"):
            got = apply(encoded(Image.fromarray(pixels[..., :: 1 if order == "RGB" else -1])), parse(
                how | {"order": order, "layout": layout, "mean": how["mean"], "std": how["std"]}
            ))  # fmt: skip
            assert got.flags.c_contiguous
            np.testing.assert_array_equal(got, wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    ("size", "side", "crop"),
    [((480, 360), 256, (224, 224)), ((360, 480), 256, (224, 224)), ((500, 375), 256, (224, 224)),
     ((83, 61), 40, (32, 36)), ((61, 83), 40, (36, 32)), ((40, 30), 64, (50, 60)), ((30, 29), 29, (20, 10)),
     ((300, 7), 3, (3, 50)), ((7, 300), 3, (50, 3)), ((90, 60), 30, (30, 45)), ((50, 1), 2, (1, 1))],
)  # fmt: skip
def test_only_what_the_crop_leaves_is_computed_and_nothing_differs(
    mode: str, interpolation: str, size: tuple[int, int], side: int, crop: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    share = side / min(size)
    width, height = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    left, top = (width - crop[1]) // 2, (height - crop[0]) // 2
    whole = picture.resize((width, height), getattr(Image.Resampling, interpolation.upper()))
    wanted = np.asarray(whole.crop((left, top, left + crop[1], top + crop[0]))).reshape(*crop, -1)
    how = {"resize": side, "crop": crop, "channels": wanted.shape[-1], "interpolation": interpolation}
    np.testing.assert_array_equal(read(encoded(picture), **how, dtype="uint8"), wanted)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("several", [True, False])
def test_one_mean_or_one_a_channel(dtype: str, channels: int, several: bool) -> None:
    mean, std = ([3.0, 7, 11][:channels], [2.0, 4, 8][:channels]) if several else ([5.0], [2.0])
    how = {"channels": channels, "order": "BGR"} | ({"mean": mean, "std": std} if dtype == "float32" else {})
    picture = Image.fromarray(CORNERS).convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(picture).reshape(16, 24, -1)[..., ::-1]
    wanted = pixels if dtype == "uint8" else (pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)
    for layout, axes in (("NHWC", (0, 1, 2)), ("NCHW", (2, 0, 1))):
        row = read(encoded(picture), **how, dtype=dtype, layout=layout)
        assert (row.dtype, row.flags.c_contiguous, row.flags.writeable) == (np.dtype(dtype), True, True)
        np.testing.assert_array_equal(row, wanted.transpose(axes))


def test_scans_are_counted_across_the_pieces_that_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\xff\xd8" + b"\xff\xda" * 5 + b"\xff\xff\xda\xda" + b"\0" * 7 + b"\xff\xda"
    for at_once in range(1, 30):
        monkeypatch.setattr(pictures, "_AT_ONCE", at_once)
        assert pictures._scans(data) == data.count(b"\xff\xda") == 7
    assert pictures._scans(b"\xff") == pictures._scans(b"") == 0


async def test_what_waits_to_be_decoded_is_bounded() -> None:
    decoding = Decoding(PICTURE)
    good, gate = encoded(Image.fromarray(CORNERS)), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(gate.wait, 60)
        waiting = [asyncio.create_task(decoding.rows([good, b"junk"], threads, 4, None)) for _ in range(2)]
        late = asyncio.create_task(decoding.rows([], threads, 4, None))
        await late
        assert decoding.waiting == 4
        with pytest.raises(Overloaded, match="4 images wait") as caught:
            await decoding.rows([good], threads, 4, None)
        assert caught.value.headers["Retry-After"] == "1"
        waiting[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        assert decoding.waiting == 2
        past = asyncio.create_task(decoding.rows([good], threads, 4, time.monotonic()))
        await asyncio.sleep(0.01)
        gate.set()
        row, junk = await waiting[0]
        assert isinstance(row, np.ndarray)
        assert isinstance(junk, BadTensor)
        with pytest.raises(DeadlineExceeded):
            await past
        assert decoding.waiting == 0


async def test_over_http(app: FastAPI, client: httpx.AsyncClient) -> None:
    shape = (-1, 3, 16, 24)
    serve_lane(
        app, "eye", lane([Tensor(name="x", shape=shape)], [Tensor(name="y", shape=shape)], preprocess={"scale": 1})
    )
    good = encoded(Image.fromarray(CORNERS))
    headers = {"Content-Type": "image/png"}
    bombs = [png_of(60_000, 60_000), png_of(7000, 7000), good[:-30], b"no image", encoded(Image.new("RGB", (8, 8)))]
    for data in bombs:
        refused = await client.post("/predict/eye", content=data, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_tensor"), refused.text
        several = await client.post("/predict/eye", files=[("a", ("a", good)), ("b", ("b", data))])
        assert (several.status_code, several.json()["code"]) == (422, "bad_tensor"), several.text
    answer = await client.post("/predict/eye", files=[("a", ("a", good)), ("b", ("b", good))])
    y = np.asarray(answer.json()["outputs"]["y"])
    np.testing.assert_array_equal(y, np.stack([CORNERS.transpose(2, 0, 1)] * 2))
