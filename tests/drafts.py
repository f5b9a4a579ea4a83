"""A version that is ready to be published."""

from pathlib import Path

from app.domain.records import Made, Signature, Tensor, Version, now
from app.storage.artifacts import Artifacts
from app.storage.registry import put_files


def draft(artifacts: Artifacts, folder: Path, job: str, name: str = "net") -> Version:
    """Of two files, which are in the store as those of an attempt at `job`."""
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "deep" / "b.bin").write_bytes(b"d" * 1000)
    prefix = f"models/{name}/files/{job}-1"
    files, size = put_files(artifacts, folder, prefix)
    return Version(
        name=name,
        version=1,
        format="onnx",
        folder=prefix,
        files=files,
        bytes=size,
        signature=Signature(inputs=(Tensor(name="x", shape=(-1, 4)),)),
        made_by=Made(job=job, spec={}),
        created_at=now(),
    )
