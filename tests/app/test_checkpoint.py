import contextlib
import io
import zipfile

import checkpoints_for_app as files
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Problem
from app.intake import archives, tars
from app.intake.checkpoint import HEAD, examine, recognise

SEEDS = (
    files.torch_zip(),
    files.safetensors(),
    files.ONNX,
    files.zipped(files.HUGGING_FACE, zipfile.ZIP_DEFLATED),
    files.tarred(files.HUGGING_FACE),
    files.tarred(files.HUGGING_FACE, "w:gz"),
)


async def look(data: bytes) -> str:
    """What the app does with an upload, without the app."""

    async def window(start: int, end: int) -> bytes:
        return data[start:end]

    kind = recognise(data[:HEAD])
    if kind in ("tar", "packed_tar"):
        tars.examine(io.BytesIO(data), archive_bytes=len(data), max_files=100, max_bytes=1 << 20)  # type: ignore[arg-type]
    else:
        await examine(kind, len(data), window, max_files=100, max_bytes=1 << 20)
    return kind


async def test_the_seeds_are_taken() -> None:
    assert [await look(seed) for seed in SEEDS] == ["zip", "safetensors", "onnx", "zip", "tar", "packed_tar"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
async def test_damage_is_a_problem_and_nothing_else(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
        damaged = damaged or bytearray(b"x")
    with contextlib.suppress(Problem):
        await look(bytes(damaged))


def test_the_directory_is_read_as_zipfile_reads_it() -> None:
    data = files.zipped({f"a/{i}": b"x" * i for i in range(200)} | {"ü/é": b"1"}, zipfile.ZIP_DEFLATED)
    found = archives.find_directory(data[-archives.TAIL :], len(data))
    members = list(archives.read_directory(data[found.start : found.start + found.size]))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert members == list(archives.of_zip(archive))
    assert found.entries == 201


def test_sixty_four_bit_archives() -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive, archive.open("m/data.pkl", "w", force_zip64=True) as member:
        member.write(b"x" * 10)
    data = held.getvalue()
    found = archives.find_directory(data[-archives.TAIL :], len(data))
    (member_found,) = archives.read_directory(data[found.start : found.start + found.size])
    assert (member_found.name, member_found.size) == ("m/data.pkl", 10)
