"""From an encoded image to what a network takes: the same for data sets, calibration and /predict."""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import BadTensor

LARGEST_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")  # of Pillow's many parsers, those that people train with
_SMALLER = "make it smaller first"
Side = Annotated[int, Field(ge=1, le=8192)]


class Preprocess(BaseModel):
    """In this order: decode, resize, crop the middle, multiply by `scale`, subtract `mean`, divide by `std`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    resize: tuple[Side, Side] | Side | None = Field(
        None, description="[height, width], or the length of the shorter side"
    )
    crop: tuple[Side, Side] | None = Field(None, description="[height, width] cut from the middle")
    channels: Literal[1, 3] = Field(3, description="1: grey; 3: colour")
    order: Literal["RGB", "BGR"] = "RGB"
    scale: float = Field(1 / 255, description="what every value is multiplied by first")
    mean: tuple[float, ...] | float | None = Field(None, description="subtracted after scaling; one, or one a channel")
    std: tuple[float, ...] | float | None = Field(None, description="divided by at the end; one, or one a channel")
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    interpolation: Literal["bilinear", "nearest", "bicubic"] = "bilinear"
    dtype: Literal["float32", "uint8"] = Field("float32", description="uint8: the bytes as they are, unscaled")

    @model_validator(mode="before")
    @classmethod
    def _grayscale(cls, given: Any) -> Any:
        """`"channels": "grayscale"` and `"grayscale": true` are what people write as well."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if given.get("channels") in ("grayscale", "grey", "gray"):
            given["channels"] = 1
        elif given.get("channels") in ("rgb", "RGB"):
            given["channels"] = 3
        if isinstance(given.get("grayscale"), bool):
            given["channels"] = 1 if given.pop("grayscale") else given.get("channels", 3)
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) not in (1, self.channels):
                raise ValueError(f"{name} has {len(value)} values for {self.channels} channels")
        if self.std is not None and not np.all(np.asarray(self.std)):
            raise ValueError("std must not be 0")
        if self.dtype == "uint8" and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std do not go with dtype uint8")
        return self

    def shape(self) -> tuple[int, int, int] | None:
        """The shape of one row, where this alone decides it."""
        size = self.crop or (self.resize if isinstance(self.resize, tuple) else None)
        if size is None:
            return None
        return (self.channels, *size) if self.layout == "NCHW" else (*size, self.channels)


def parse(given: dict[str, Any]) -> Preprocess:
    """Of a stored record. Raises pydantic.ValidationError."""
    return Preprocess.model_validate(given)


def apply(data: bytes, preprocess: Preprocess) -> npt.NDArray[Any]:
    """One encoded image → one row: C×H×W or H×W×C (no batch axis), float32 or uint8. Raises BadTensor."""
    return arrange(decode(data, preprocess), preprocess)


def decode(data: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """One encoded image → H×W×C bytes, resized and cropped. Raises BadTensor."""
    from PIL import Image  # here: the app starts without it

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_PIXELS:
                raise BadTensor(
                    f"the image has {width}×{height} pixels; at most {LARGEST_PIXELS} are decoded", hint=_SMALLER
                )
            if image.mode.startswith(("I", "F")):
                raise BadTensor("the image has more than 8 bits a channel", hint="convert it to 8 bits, or send arrays")
            picture = image.convert("L" if preprocess.channels == 1 else "RGB")
    except BadTensor:
        raise
    except Image.DecompressionBombError:
        raise BadTensor(f"the image has more than {LARGEST_PIXELS} pixels", hint=_SMALLER) from None
    except (OSError, ValueError, SyntaxError, OverflowError, MemoryError, EOFError, RuntimeError) as error:
        why = "it is none of " + ", ".join(FORMATS) if "cannot identify" in str(error) else str(error)
        raise BadTensor(f"the image cannot be decoded: {why}", hint="send JPEG or PNG") from None
    method = {
        "bilinear": Image.Resampling.BILINEAR,
        "nearest": Image.Resampling.NEAREST,
        "bicubic": Image.Resampling.BICUBIC,
    }[preprocess.interpolation]
    if preprocess.resize is not None:
        if isinstance(preprocess.resize, tuple):
            height, width = preprocess.resize
        else:
            width, height = picture.size
            share = preprocess.resize / min(width, height)
            height, width = max(1, round(height * share)), max(1, round(width * share))
            if height * width > LARGEST_PIXELS:
                raise BadTensor(
                    f"the image would be resized to {width}×{height}, which is too much",
                    hint="send one that is less long and thin",
                )
        if picture.size != (width, height):
            picture = picture.resize((width, height), method)
    if preprocess.crop is not None:
        (height, width), (have_w, have_h) = preprocess.crop, picture.size
        if height > have_h or width > have_w:
            raise BadTensor(
                f"the image is {have_h}×{have_w}, smaller than the crop of {height}×{width}",
                hint="send a larger one, or give `preprocess` a `resize` before its crop",
            )
        left, top = (have_w - width) // 2, (have_h - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def arrange(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[Any]:
    """H×W×C bytes → the row that the network takes."""
    if preprocess.channels == 3 and preprocess.order == "BGR":
        pixels = pixels[..., ::-1]
    row: npt.NDArray[Any] = pixels
    if preprocess.dtype == "float32":
        row = pixels.astype(np.float32) * np.float32(preprocess.scale)
        if preprocess.mean is not None:
            row = row - np.asarray(preprocess.mean, np.float32)
        if preprocess.std is not None:
            row = row / np.asarray(preprocess.std, np.float32)
    if preprocess.layout == "NCHW":
        row = row.transpose(2, 0, 1)
    return np.ascontiguousarray(row)
