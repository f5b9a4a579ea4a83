"""Publishes the benchmark's model as an engine of a running service, and deploys it as `peer`. No worker is needed."""

from __future__ import annotations

import json
import time
import urllib.request

from app import runtimes
from app.domain.records import Made, Signature, Tensor, Version, now
from app.embedded import url_of
from app.runtimes import BuildOptions
from app.settings import Settings
from app.storage import registry
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from benchmarks.peers import MAX_BATCH, SHAPES, Options, options
from benchmarks.peers.engine import CROP, MEAN, RESIZE, STD

CLASSES = {"tiny": 10, "resnet": 1000}


def publish(given: Options) -> Version:
    """Builds the engine and puts it into the store of the service whose data folder is `given.folder`."""
    settings = Settings(data=given.folder)
    artifacts = Artifacts(settings.artifacts_url)
    catalog = Catalog.open(settings, url_of(settings.data), patience_s=30)
    built = given.folder / "built"
    built.mkdir()
    built_for = runtimes.get("openvino").build(given.onnx, built, BuildOptions(), lambda share, phase: None)
    prefix = "models/peer/files/bench-1"
    files, size = registry.put_files(artifacts, built, prefix)
    draft = Version(
        name="peer",
        version=1,
        format="openvino",
        folder=prefix,
        files=files,
        bytes=size,
        signature=Signature(
            inputs=(Tensor(name="x", shape=(-1, *SHAPES[given.model])),),
            outputs=(Tensor(name="logits", shape=(-1, CLASSES[given.model])),),
        ),
        made_by=Made(job="bench", spec={}),
        built_for=built_for,
        preprocess={"resize": RESIZE, "crop": [CROP, CROP], "mean": MEAN, "std": STD},
        details={"precision": "fp32", "max_batch": MAX_BATCH},
        created_at=now(),
    )
    return registry.publish_version(artifacts, catalog, draft)


def wait_until_live(url: str, seconds: float = 60) -> None:
    """Raises OSError once the service has not answered for that long."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/healthz/live", timeout=5):
                return
        except OSError:  # urllib's errors and time-outs too: the socket is there before the app is
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def main(**settings: int) -> None:
    """settings: of the deployment, beside a long queue."""
    given = options()
    url = f"http://127.0.0.1:{given.port}"
    wait_until_live(url)
    version = publish(given)
    body = json.dumps({"model": version.ref, "max_queue": 4096, **settings}).encode()
    put = urllib.request.Request(
        f"{url}/v1/deployments/peer", body, {"Content-Type": "application/json", "Prefer": "wait=60"}, method="PUT"
    )
    with urllib.request.urlopen(put, timeout=70) as answer:
        if b'"ready"' not in answer.read():
            raise SystemExit("the deployment did not become ready")


if __name__ == "__main__":
    main()
