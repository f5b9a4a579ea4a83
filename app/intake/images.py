"""Data sets of kind `images`: a zip of one folder per class, optionally under train/, val/ and test/."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import BadDataset, BadTensor, InsufficientStorage, TooLarge, UnsupportedMedia
from app.intake import archives
from app.intake.archives import told
from app.intake.draft import Intake, Rows, x_file
from app.intake.npy import Writer
from app.intake.preprocess import Preprocess, apply
from app.intake.targets import number_labels
from app.settings import MiB

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LARGEST_FILE = 64 * MiB
Files = dict[str, list[tuple[str, str]]]  # split → (class, name in the archive)


def read(given: Intake) -> Rows:
    """Decodes every image to a row. Raises BadDataset naming the first file that is none."""
    if not zipfile.is_zipfile(given.file):
        raise UnsupportedMedia("kind 'images' takes a zip of folders, and this is none", code="not_zip")
    with zipfile.ZipFile(given.file) as archive:
        size = given.file.stat().st_size
        names = [
            m.name
            for m in archives.guarded(
                archives.of_zip(archive), archive_bytes=size, max_files=given.max_files, max_bytes=given.max_bytes
            )
        ]
        files = sort_files(names)
        numbers = _classes(files, given)
        preprocess = given.manifest.preprocess or Preprocess()
        shape = _check_size(archive, files, preprocess, given)
        targets = {}
        for split, found in files.items():
            with Writer(given.folder / x_file(split), shape, preprocess.dtype) as writer:
                for _, name in found:
                    row = _row(archive, name, preprocess)
                    if row.shape != shape:
                        raise BadDataset(
                            f"{told(name)} is {list(row.shape)}, and others are {list(shape)}",
                            code="sizes_differ",
                            hint="give `preprocess` a `resize`: [height, width]",
                        )
                    writer.append(row[None])
            targets[split] = np.array([numbers[c] for c, _ in found], dtype=np.int64)
    labels = tuple(sorted(numbers, key=lambda label: numbers[label]))
    record = preprocess.model_dump(mode="json", exclude_none=True)
    return Rows(shape, preprocess.dtype, targets, labels, preprocess=record)


def sort_files(names: list[str]) -> Files:
    """The files by split, each with its class. Raises BadDataset for one that lies in no folder of a class."""
    paths = [n.split("/") for n in names if not n.endswith("/")]
    paths = [p for p in paths if not any(part.startswith(".") or part == "__MACOSX" for part in p)]
    paths = [p for p in paths if p[-1] != "Thumbs.db"]
    if not paths:
        raise BadDataset("there is no file in the zip", code="empty", hint="one folder per class, images in it")
    # A folder around everything is how most people pack theirs.
    if len({p[0] for p in paths}) == 1 and min(map(len, paths)) >= 3 and paths[0][0].lower() not in _SPLITS:
        paths_inner = [p[1:] for p in paths]
    else:
        paths_inner = paths
    is_split = all(p[0].lower() in _SPLITS for p in paths_inner) and min(map(len, paths_inner)) >= 3
    found: Files = defaultdict(list)
    for whole, inner in zip(paths, paths_inner, strict=True):
        split, folders = (_SPLITS[inner[0].lower()], inner[1:]) if is_split else ("train", inner)
        if len(folders) < 2:
            raise BadDataset(
                f"{told('/'.join(whole))} lies in no folder of a class",
                code="no_class",
                hint="CLASS/image.png, or train/CLASS/image.png and test/CLASS/image.png",
            )
        found[split].append(("/".join(folders[:-1]), "/".join(whole)))
    if "train" not in found:
        raise BadDataset(
            f"there is no folder train/ beside {', '.join(f'{split}/' for split in sorted(found))}",
            code="missing_split",
            hint="add it; or leave out the folders of splits, and the whole is divided",
        )
    return {split: sorted(found[split]) for split in ("train", "val", "test") if split in found}


def _classes(files: Files, given: Intake) -> dict[str, int]:
    folders = {split: {c for c, _ in found} for split, found in files.items()}
    for split, classes in folders.items():
        if strangers := classes - folders["train"]:
            raise BadDataset(
                f"{split} has the class {told(min(strangers))}, which train has not", code="labels_out_of_range"
            )
    return number_labels(sorted(folders["train"]), given.manifest.labels, "the zip's folders")


def _check_size(archive: zipfile.ZipFile, files: Files, preprocess: Preprocess, given: Intake) -> tuple[int, ...]:
    """The shape of a row, by the first image; refuses what would not fit before anything is written."""
    shape = _row(archive, files["train"][0][1], preprocess).shape
    rows = sum(map(len, files.values()))
    needed = rows * math.prod(shape) * np.dtype(preprocess.dtype).itemsize
    if needed > given.max_bytes:
        raise TooLarge(
            f"{rows} images of {list(shape)} {preprocess.dtype} take {needed} bytes; at most {given.max_bytes} fit",
            hint="a smaller `resize`, or dtype uint8",
        )
    free = shutil.disk_usage(given.folder).free
    if needed > free:
        raise InsufficientStorage(f"the data set takes {needed} bytes, and {free} are free")
    return tuple(int(n) for n in shape)


def _row(archive: zipfile.ZipFile, name: str, preprocess: Preprocess) -> npt.NDArray[Any]:
    info = archive.getinfo(name)
    if info.file_size > _LARGEST_FILE:
        raise BadDataset(f"{told(name)} has {info.file_size} bytes; an image has at most {_LARGEST_FILE}")
    try:
        return apply(archive.read(info), preprocess)
    except BadTensor as error:
        raise BadDataset(
            f"{told(name)}: {error.detail}", code="bad_image", hint=error.hint or "leave it out, or save it again"
        ) from None
