"""Zip and tar listings of hostile origin: what they hold, and whether unpacking them would do harm."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from app.errors import Problem, TooLarge, Unprocessable
from app.settings import MiB

TAIL = 65_536 + 22 + 20 + 56  # the longest comment, and the three records that end an archive
LARGEST_DIRECTORY = 64 * MiB
# More than this many times its packed size, past this many bytes, is no honest file: weights and images hardly shrink.
BOMB_RATIO = 200
BOMB_FROM = 64 * MiB
_END, _END64, _LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_DRIVE = re.compile(r"^[A-Za-z]:")


class Member(NamedTuple):
    """One file of an archive. packed: bytes in the archive; None where the format does not say."""

    name: str
    size: int
    packed: int | None = None
    is_link: bool = False
    encrypted: bool = False
    method: int = 0


class Directory(NamedTuple):
    """Where a zip's central directory lies."""

    start: int
    size: int
    entries: int


def find_directory(tail: bytes, archive_bytes: int) -> Directory:
    """From the last `TAIL` bytes of a zip. Raises Unprocessable when it was cut short."""
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise _cut_short()
    entries, size, offset = struct.unpack_from("<HLL", tail, at + 10)
    base = archive_bytes - len(tail)
    end = base + at
    # torch.save writes the 64-bit records also where nothing needs them; they lie between the list and its end.
    place = at - 20
    if place >= 56 and tail[place : place + 4] == _LOCATOR and tail[place - 56 : place - 52] == _END64:
        entries, size, offset = struct.unpack_from("<QQQ", tail, place - 56 + 32)
        end = base + place - 56
    start = end - size
    if start < 0 or offset > start:
        raise _cut_short()
    if size > LARGEST_DIRECTORY:
        raise TooLarge(f"the archive's list of files takes {size} bytes; at most {LARGEST_DIRECTORY} are read")
    return Directory(start, size, entries)


def read_directory(data: bytes) -> Iterator[Member]:
    """The members that a zip's central directory names. Raises Unprocessable."""
    at = 0
    while at + 46 <= len(data):
        if data[at : at + 4] != _ENTRY:
            raise _cut_short()
        made_by, flags, method = struct.unpack_from("<HxxHH", data, at + 4)
        packed, size, name_len, extra_len, note_len = struct.unpack_from("<LLHHH", data, at + 20)
        (attributes,) = struct.unpack_from("<L", data, at + 38)
        name = data[at + 46 : at + 46 + name_len]
        extra = data[at + 46 + name_len : at + 46 + name_len + extra_len]
        if len(extra) < extra_len:
            raise _cut_short()
        size, packed = _zip64(extra, size, packed)
        yield Member(
            name.decode("utf-8" if flags & 0x800 else "cp437", "replace"),
            size,
            packed,
            made_by >> 8 == 3 and stat.S_ISLNK(attributes >> 16),
            bool(flags & 1),
            method,
        )
        at += 46 + name_len + extra_len + note_len


def _zip64(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = [v for (v,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            if size == 0xFFFFFFFF and values:
                size = values.pop(0)
            if packed == 0xFFFFFFFF and values:
                packed = values.pop(0)
        at += 4 + length
    return size, packed


def of_zip(archive: zipfile.ZipFile) -> Iterator[Member]:
    """The members of an open zip."""
    for info in archive.infolist():
        is_link = info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16)
        encrypted = bool(info.flag_bits & 1)
        yield Member(info.filename, info.file_size, info.compress_size, is_link, encrypted, info.compress_type)


def guarded(members: Iterable[Member], *, archive_bytes: int, max_files: int, max_bytes: int) -> Iterator[Member]:
    """The members, each checked before it is given: paths, links, encryption, how many, how large, how inflated.

    Raises Unprocessable (what nobody may unpack) and TooLarge (bombs).
    """
    seen: set[str] = set()
    total = packed = 0
    for count, member in enumerate(members, 1):
        if count > max_files:
            raise TooLarge(f"the archive holds more than {max_files} files", code="too_many_files", hint="pack fewer")
        check_path(member.name)
        if member.is_link:
            raise _refused(f"{told(member.name)} in the archive is a link", "pack the file itself")
        if member.encrypted:
            raise _refused(f"{told(member.name)} in the archive is encrypted", "pack it without a password")
        if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(f"{told(member.name)} is packed by method {member.method}", "use deflate, or none")
        if member.name in seen:
            raise _refused(f"{told(member.name)} is in the archive twice", "pack every file once")
        seen.add(member.name)
        total += member.size
        packed += archive_bytes if member.packed is None else member.packed
        if total > max_bytes:
            raise TooLarge(
                f"the archive would unpack to more than {max_bytes} bytes",
                code="archive_bomb",
                hint="raise ENGINESMITH_MAX_UNPACKED_BYTES if it is honest",
            )
        inflated = total if member.packed is None else member.size
        against = archive_bytes if member.packed is None else member.packed
        if inflated > BOMB_FROM and inflated > BOMB_RATIO * against:
            raise TooLarge(
                f"{told(member.name)} would unpack to more than {BOMB_RATIO} times its packed size",
                code="archive_bomb",
                hint="pack it without compression if it is honest",
            )
        if member.packed is not None and packed > archive_bytes:
            raise TooLarge("files of the archive overlap", code="archive_bomb", hint="pack it again")
        yield member


def check_path(name: str) -> None:
    """Raises Unprocessable for a path that leads out of the folder it is unpacked to."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or _DRIVE.match(name) or "\0" in name:
        raise _refused(f"{told(name)} in the archive leads out of its folder", "pack it with relative paths")


def told(name: str) -> str:
    """A name of theirs as it may stand in a message."""
    return repr(name if len(name) <= 120 else name[:117] + "…")


def _refused(detail: str, hint: str) -> Problem:
    return Unprocessable(detail, code="unsafe_archive", hint=hint)


def _cut_short() -> Problem:
    return Unprocessable(
        "this zip archive is damaged or was cut short: its list of files is not there",
        code="truncated",
        hint="upload the whole file again; compare its size with the original's",
    )
