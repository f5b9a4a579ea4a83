"""A client of the running service, and the data that the flows use."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from enginesmith import Client
from running import Service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


@pytest.fixture(scope="session")
def mnist3000(shared: Path) -> dict[str, np.ndarray]:
    """The first 3,000 MNIST test images, normalized as the example network wants them."""
    folder = shared / "datasets" / "mnist"
    images = gzip.decompress((folder / "test3000-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "test3000-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = np.frombuffer(images, np.uint8).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return {"x": ((x - 0.1307) / 0.3081).astype(np.float32), "y": np.frombuffer(labels, np.uint8).astype(np.int64)}
