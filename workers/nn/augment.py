"""Other views of the same pictures while a network trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.nn.data import Data

CHANNELS = (1, 2, 3, 4)  # of pictures: what tells (C, H, W) from (H, W, C)
MARGIN = 8  # a picture moves by up to one part in so many of its shorter side: 4 of 32 pixels

Augment = Callable[[torch.Tensor], torch.Tensor]


def augment_for(data: Data, plan: Training) -> Augment | None:
    """What is done to every batch of training rows; None: nothing. Raises Unprocessable for rows that are no pictures.

    It draws from torch's own random state, which checkpoints keep.
    """
    if plan.augment == "none":
        return None
    row = tuple(data.train.x.shape[1:])
    if len(row) != 3 or not (row[0] in CHANNELS or row[2] in CHANNELS):
        raise Unprocessable(
            f"`augment` flips and moves pictures; rows of {data.ref} have the shape {list(row)}",
            code="not_images",
            hint='say "augment": "none"',
        )
    if row[0] in CHANNELS:
        return flip_crop
    return lambda x: flip_crop(x.movedim(-1, 1)).movedim(1, -1)


def flip_crop(x: torch.Tensor) -> torch.Tensor:
    """x: (N, C, H, W). Each picture is mirrored or not, and cut anew out of itself with a margin of zeros around it
    (He et al. 2015, section 4.2): the standard augmentation of CIFAR."""
    n, channels, height, width = x.shape
    margin = max(1, min(height, width) // MARGIN)
    down, right = torch.randint(0, 2 * margin + 1, (2, n, 1))
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width)) + right
    rows = torch.arange(height) + down
    # One gather over every picture's pixels, the same for all its channels.
    wide = width + 2 * margin
    pixels = (rows[:, :, None] * wide + columns[:, None, :]).reshape(n, 1, -1).to(x.device)
    padded = F.pad(x, (margin,) * 4).flatten(2)
    return padded.gather(2, pixels.expand(n, channels, -1)).reshape(x.shape)
