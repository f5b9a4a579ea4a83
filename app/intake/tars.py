"""The listing of a tar of hostile origin, read from a stream: every header is checked, nothing is unpacked."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Self, cast

from app.errors import TooLarge, Unprocessable
from app.intake import archives, checkpoint
from app.intake.archives import Member
from app.settings import MiB

_LARGEST_HEADER = MiB
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _BoundedInfo(tarfile.TarInfo):
    """tarfile reads extended headers into memory whatever size they claim; this refuses large ones."""

    def _proc_member(self, tar: tarfile.TarFile) -> Self:
        if self.type in _EXTENDED and self.size > _LARGEST_HEADER:
            raise TooLarge(
                "a header in the tar archive is larger than 1 MiB", code="archive_bomb", hint="pack it again"
            )
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def examine(stream: io.RawIOBase, *, archive_bytes: int, max_files: int, max_bytes: int) -> None:
    """Reads a tar (also packed by gzip, bzip2 or xz) to its end. Raises Unprocessable, UnsupportedMedia, TooLarge."""
    names: list[str] = []
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|*", tarinfo=_BoundedInfo) as tar:
            bounds = {"archive_bytes": archive_bytes, "max_files": max_files, "max_bytes": max_bytes}
            for member in archives.guarded(_members(tar), **bounds):
                names.append(member.name)
    except tarfile.ReadError as error:
        # Before the first file there is no sign of a tar; after it, a part of one is missing.
        if not names and "end of data" not in str(error):
            raise checkpoint.foreign("a packed file, and no tar") from None
        raise _damaged(error) from None
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise _damaged(error) from None
    checkpoint.classify(names)


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    held: Any = tar
    for info in tar:
        held.members = []  # it keeps every header otherwise
        if info.isdir():
            archives.check_path(info.name)
            continue
        yield Member(info.name, info.size, is_link=not info.isreg() or info.issparse())


def _damaged(error: Exception) -> Unprocessable:
    return Unprocessable(
        f"this tar archive is damaged or was cut short ({error})",
        code="truncated",
        hint="upload the whole file again; compare its size with the original's",
    )
