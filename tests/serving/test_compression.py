"""Compressed bodies: gzip and deflate, bounded; what is asked for by Accept-Encoding."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from app.errors import BadRequest, TooLarge, UnsupportedMedia
from app.serving.compression import Unpacking, accepted, coding, packed


def unpacked(body: bytes, coding: str, limit: int) -> bytes:
    unpacking, parts, more = Unpacking(body, coding, limit), [], True
    while more:
        part, more = unpacking.step()
        parts.append(part)
    return b"".join(parts)


TEXT = b"the same words " * 1000


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_there_and_back(name: str) -> None:
    small = packed(TEXT, name)
    assert len(small) < len(TEXT) / 10
    assert unpacked(small, name, len(TEXT)) == TEXT
    assert (gzip.decompress if name == "gzip" else zlib.decompress)(small) == TEXT
    assert unpacked(packed(b"", name), name, 0) == b""


def test_bare_deflate_and_gzip_of_several_members() -> None:
    bare = zlib.compressobj(wbits=-15)
    assert unpacked(bare.compress(TEXT) + bare.flush(), "deflate", 10**6) == TEXT
    assert unpacked(gzip.compress(b"one ") + gzip.compress(b"two"), "gzip", 100) == b"one two"


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(name: str) -> None:
    bomb = packed(bytes(10_000_000), name)
    with pytest.raises(TooLarge, match="more than 1000000 bytes"):
        unpacked(bomb, name, 1_000_000)
    with pytest.raises(TooLarge):
        unpacked(packed(bytes(600), name) + packed(bytes(600), name), name, 1000) if name == "gzip" else unpacked(
            bomb, name, 0
        )


def test_a_chain_of_tiny_members_is_cut_short() -> None:
    with pytest.raises(BadRequest, match="follow the end"):
        unpacked(gzip.compress(b"") * 100_000, "gzip", 10**6)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_broken_bodies(name: str) -> None:
    whole = packed(TEXT, name)
    for broken in (b"", b"\x00", whole[: len(whole) // 2], whole[:-1], whole[:14] + b"\xff\xff\xff" + whole[17:]):
        with pytest.raises(BadRequest):
            unpacked(broken, name, 10**6)
    with pytest.raises(BadRequest):
        unpacked(whole + b"more", name, 10**6)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_it_comes_in_parts(name: str) -> None:
    large = random.Random(0).randbytes(3000) * 1000
    unpacking = Unpacking(packed(large, name), name, len(large))
    parts, more = [], True
    while more:
        part, more = unpacking.step()
        parts.append(part)
    assert b"".join(parts) == large
    assert len(parts) == 3
    for size in (1, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, 2 << 20):  # where a part ends, and the body with it
        assert unpacked(packed(bytes(size), name), name, size) == bytes(size)
        with pytest.raises(BadRequest, match="in the middle"):
            unpacked(packed(bytes(size), name)[:-9], name, size)


def test_codings() -> None:
    assert [coding(c) for c in ("", "identity", " GZIP ", "deflate")] == [None, None, "gzip", "deflate"]
    for other in ("br", "gzip, deflate", "zstd", "x" * 999):
        with pytest.raises(UnsupportedMedia, match="Content-Encoding"):
            coding(other)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("", None), ("br", None), ("*", None), ("identity", None), ("gzip", "gzip"), ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"), ("gzip;q=0", None), ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("GZip ; q=0.5", "gzip"), ("gzip;q=nonsense", None),
    ],
)  # fmt: skip
def test_what_accept_encoding_asks_for(asked: str, given: str | None) -> None:
    assert accepted(asked) == given
