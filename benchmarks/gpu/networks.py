"""What is built and compared: four networks with drawn weights, as their papers have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from app.domain.records import Signature, Tensor
from benchmarks.compressing.networks import ResNet18
from demo.net import SimpleCNN


@dataclass(frozen=True)
class Subject:
    """shape: of one row. best: batches to look for the best throughput with."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10
    batches: tuple[int, ...] = (1, 8, 32, 64)

    def module(self) -> nn.Module:
        """With the same weights every time. Their normalisations have seen data: else all outputs were one number."""
        torch.manual_seed(0)
        made = self.make().train()
        with torch.no_grad():
            for _ in range(2):
                made(torch.randn(4, *self.shape))
        return made.eval()

    @property
    def signature(self) -> Signature:
        return Signature(
            inputs=(Tensor(name="input", shape=(-1, *self.shape), batch_axis=0),),
            outputs=(Tensor(name="logits", shape=(-1, self.classes), batch_axis=0),),
        )


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut, projected where the shape changes (He et al. 2015, figure 5)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.short: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.short(x) + self.body(x))


class ResNet50(nn.Module):
    """The ResNet of 50 layers for pictures of 224×224 (He et al. 2015, table 1), with ten classes."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        blocks: list[nn.Module] = []
        before = 64
        for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            for number in range(count):
                blocks.append(Bottleneck(before, width, 2 if stage and not number else 1))
                before = 4 * width
        self.features = nn.Sequential(*stem, *blocks)
        self.linear = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class ViT(nn.Module):
    """ViT-S/16 (Dosovitskiy et al. 2020; the small one of Touvron et al. 2020), with a mean over the patches."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.places = nn.Parameter(torch.randn(1, 196, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: torch.Tensor = self.linear(self.norm(self.encoder(tokens)).mean(1))
        return logits


SUBJECTS = {
    s.name: s
    for s in (
        Subject("cnn", SimpleCNN, (1, 28, 28), batches=(1, 64, 512)),
        Subject("resnet18", ResNet18, (3, 224, 224)),
        Subject("resnet50", ResNet50, (3, 224, 224)),
        Subject("vit", ViT, (3, 224, 224)),
    )
}
