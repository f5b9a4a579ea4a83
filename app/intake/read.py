"""One data set, whatever its kind: every error it can end with is a Problem."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from typing import Any

from app.errors import BadDataset, InsufficientStorage, TooLarge
from app.intake.draft import Intake, describe


def read_dataset(given: Intake) -> dict[str, Any]:
    """Reads a file of any kind into its folder; gives the fields of a records.Dataset. Raises Problem."""
    if not given.file.stat().st_size:
        raise BadDataset("the file is empty", code="empty_file", hint="upload it again")
    try:
        match given.manifest.kind:
            case "arrays":
                from app.intake import arrays

                found = arrays.read(given)
            case "images":
                from app.intake import images

                found = images.read(given)
            case "table":
                from app.intake import table

                found = table.read(given)
        return describe(found, given)
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError) as error:
        raise BadDataset(f"the archive is damaged or was cut short: {error}", code="truncated") from None
    except MemoryError:
        raise TooLarge("reading this data set takes more memory than it may", hint="bring it as .npz") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage("the disk is full", hint="free some space, then try again") from None
        if error.errno == errno.EFBIG:
            raise TooLarge("the data set unpacks to more than is taken") from None
        if error.errno == errno.EINVAL:  # an archive that points outside itself
            raise BadDataset("the archive is damaged", code="truncated", hint="upload it again") from None
        raise
