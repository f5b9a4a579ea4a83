"""Encoded images, which may be hostile → Pillow's pictures, upright and of one mode."""

from __future__ import annotations

import contextlib
import io
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import BadTensor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LARGEST_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")  # of Pillow's many parsers, those that people train with
_MANY_PIXELS = 8_000_000  # as pictures such take tens of megabytes: one at a time
_MOST_SCANS = 200  # of a progressive JPEG; encoders make about ten, and each costs as much as a whole picture
_AT_ONCE = 256 * 1024  # bytes
_ORIENTATION = 0x0112  # in EXIF
_SMALLER = "make it smaller first"
_one_large = threading.Lock()


@cache
def pillow() -> Any:
    """PIL.Image, imported late because the app starts without it; set to keep its memory between pictures."""
    from PIL import Image

    # Fresh memory for every picture costs up to a third of the time. At most 16 MiB are kept.
    Image.core.set_block_size(2 * 1024 * 1024)  # type: ignore[attr-defined]
    Image.core.set_blocks_max(8)  # type: ignore[attr-defined]
    return Image


def opened(data: bytes, mode: str) -> Picture:
    """The first picture of a file, turned as its EXIF says. mode: RGB or L. Raises BadTensor."""
    image = pillow()
    if data[:2] == b"\xff\xd8" and _scans(data) > _MOST_SCANS:
        raise BadTensor(f"the image cannot be decoded: it has more than {_MOST_SCANS} scans", hint="send plain JPEG")
    try:
        with image.open(io.BytesIO(data), formats=FORMATS) as found:
            width, height = found.size
            if width * height > LARGEST_PIXELS:
                raise BadTensor(
                    f"the image has {width}×{height} pixels; at most {LARGEST_PIXELS} are decoded", hint=_SMALLER
                )
            if found.mode.startswith(("I", "F")):
                raise BadTensor("the image has more than 8 bits a channel", hint="convert it to 8 bits, or send arrays")
            with _one_large if width * height > _MANY_PIXELS else contextlib.nullcontext():
                return _upright(found, mode)
    except BadTensor:
        raise
    except (image.DecompressionBombError, image.DecompressionBombWarning):
        raise BadTensor(f"the image has more than {LARGEST_PIXELS} pixels", hint=_SMALLER) from None
    except Exception as error:
        # Parsers of hostile files raise whatever they stumble over.
        why = "it is none of " + ", ".join(FORMATS) if "cannot identify" in str(error) else str(error)
        raise BadTensor(f"the image cannot be decoded: {why}"[:300], hint="send JPEG or PNG") from None


def _scans(data: bytes) -> int:
    """At least as many as a JPEG has. A quarter of what bytes.count takes, and without holding up other threads."""
    found = 0
    for at in range(0, len(data) - 1, _AT_ONCE):
        pair = np.frombuffer(data, np.uint8, min(_AT_ONCE + 1, len(data) - at), at)
        found += int(np.count_nonzero((pair[:-1] == 0xFF) & (pair[1:] == 0xDA)))
    return found


def _upright(found: Picture, mode: str) -> Picture:
    if found.mode == "P" and "transparency" in found.info:
        found = found.convert("RGBA")  # straight to RGB Pillow warns of it
    picture: Picture = found
    if found.mode == mode:
        found.load()
    else:
        picture = found.convert(mode)
    turn = _TURNS.get(_orientation(found))
    return picture if turn is None else picture.transpose(getattr(pillow().Transpose, turn))


def _orientation(found: Picture) -> int:
    # A broken EXIF block says nothing about the picture beside it.
    with contextlib.suppress(Exception):
        return int(found.getexif().get(_ORIENTATION, 1))
    return 1


_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
