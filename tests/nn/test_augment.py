"""Other views of pictures: mirrored and moved, no pixel made up; the same again after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Listener, made
from torch import nn

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.nn.augment import augment_for, flip_crop
from workers.nn.data import Data
from workers.nn.fit import fit
from workers.nn.teacher import Teacher

PLAN = Training(epochs=4, batch_size=16, lr=0.01, augment="flip_crop")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3))


def test_every_view_is_a_window_on_the_picture_or_its_mirror_image() -> None:
    x = torch.arange(1, 2 * 8 * 8 + 1).float().reshape(1, 2, 8, 8).repeat(200, 1, 1, 1)
    padded = nn.functional.pad(x[:1], (1, 1, 1, 1))
    windows = [padded[0, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    mirrored = nn.functional.pad(x[:1].flip(3), (1, 1, 1, 1))
    windows += [mirrored[0, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    torch.manual_seed(0)
    found = [next(n for n, window in enumerate(windows) if torch.equal(view, window)) for view in flip_crop(x)]
    assert set(found) == set(range(18))


def test_channels_may_come_last(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((10, 8, 8, 3)).astype(np.float32)
    data = made(tmp_path / "last", x, np.zeros(10, np.int64), (6, 8))
    augment = augment_for(data, PLAN)
    assert augment is not None
    torch.manual_seed(0)
    last = augment(torch.from_numpy(x))
    torch.manual_seed(0)
    assert torch.equal(last, flip_crop(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1))
    assert augment_for(data, Training()) is None


def test_rows_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    data = made(tmp_path / "t", np.zeros((10, 5), np.float32), np.zeros(10, np.int64), (6, 8))
    with pytest.raises(Unprocessable, match=r"shape \[5\]") as failed:
        augment_for(data, PLAN)
    assert failed.value.code == "not_images"


def test_a_training_that_was_killed_sees_the_same_views_and_the_teacher_sees_them_too(
    bands: Data, tmp_path: Path
) -> None:
    asked: list[torch.Tensor] = []
    module = network(5).eval()

    def teacher() -> Teacher:
        asked.clear()
        return Teacher("t@1", lambda x: asked.append(x) or module(x), lambda: None, "k")  # type: ignore[func-returns-value]

    whole = network()
    fit(whole, bands, PLAN, Listener(tmp_path / "a"), teacher=teacher(), checkpoint_s=0)
    views = [x for x in asked if len(x) > 4]
    assert sum(map(len, views)) == 4 * len(bands.train)
    known = {row.tobytes() for row in bands.train.take(torch.arange(97))[0].numpy()}
    assert sum(row.numpy().tobytes() not in known for x in views for row in x) > 200
    killed = Listener(tmp_path / "b", dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), bands, PLAN, killed, teacher=teacher(), checkpoint_s=0)
    killed.dies_after = None
    resumed = network(9)
    assert fit(resumed, bands, PLAN, killed, teacher=teacher(), checkpoint_s=0).resumed_at == 2
    same = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
