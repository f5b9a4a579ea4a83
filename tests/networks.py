"""Small networks of many kinds, as an owner would write them: what `export` has to cope with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class SimpleCNN(nn.Module):
    """The article's network: 1×28×28 → 10, with its `view(-1, 320)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = x.view(-1, 320)
        x = functional.relu(self.fc1(x))
        return self.fc2(x)


class OfficialMnist(nn.Module):
    """The PyTorch MNIST example of 2018-19."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5, 1)
        self.conv2 = nn.Conv2d(20, 50, 5, 1)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(x, 2, 2)
        x = functional.relu(self.conv2(x))
        x = functional.max_pool2d(x, 2, 2)
        x = x.view(-1, 4 * 4 * 50)
        x = functional.relu(self.fc1(x))
        x = self.fc2(x)
        return functional.log_softmax(x, dim=1)


class Shortcut(nn.Module):
    """Option A of the ResNet paper: every second pixel, and zeros for the new channels."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.planes // 4
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)


class BasicBlock(nn.Module):
    def __init__(self, inner: int, planes: int, stride: int, option: str = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inner != planes:
            self.shortcut = (
                Shortcut(planes)
                if option == "A"
                else nn.Sequential(nn.Conv2d(inner, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes))
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return functional.relu(out)


class CifarResNet(nn.Module):
    """resnet20 (depth 3), resnet32 (depth 5) for 3×32×32."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, depth, 1)
        self.layer2 = self._stage(16, 32, depth, 2)
        self.layer3 = self._stage(32, 64, depth, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inner: int, planes: int, depth: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inner, planes, stride)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = functional.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class ResNet18(nn.Module):
    """ResNet-18 with narrow stages: projections, adaptive pooling, torch.flatten."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(a, b, 1 if a == b else 2, "B"), BasicBlock(b, b, 1, "B"))
            for a, b in pairwise(widths)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, c))


class VitBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallVit(nn.Module):
    """A vision transformer for 3×32×32: class token, position embedding, attention by hand."""

    def __init__(self, dim: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim))
        self.blocks = nn.ModuleList(VitBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TextNet(nn.Module):
    """int64 tokens [N, T] → 4 classes: embedding, positions from arange, masked mean."""

    def __init__(self, words: int = 100, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, dim, padding_idx=0)
        self.positions = nn.Embedding(64, dim)
        self.fc = nn.Linear(dim, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.size(1), device=tokens.device)
        x = self.embed(tokens) + self.positions(places)
        mask = (tokens != 0).unsqueeze(-1).float()
        return self.fc((x * mask).sum(1) / mask.sum(1).clamp(min=1))


class Mlp(nn.Module):
    """Functional dropout that follows self.training."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 32)
        self.b = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(torch.relu(self.a(x)), 0.5, training=self.training)
        return self.b(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        _, last = self.gru(x)
        return self.fc(last[-1])


class Encoder(nn.Module):
    """torch.nn's own attention and encoder layers as leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True, activation="gelu") for _ in range(2)
        )
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.fc((x + y).mean(dim=1))


class Splits(nn.Module):
    """chunk, split, a lambda layer, several outputs in a dict, -inf, a buffer and a constant."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b, c = self.fc(x * self.scale).chunk(3, dim=-1)
        d, e = torch.split(a + b, [1, 1], dim=1)
        hidden = c.masked_fill(c < c.amax(1, keepdim=True), float("-inf"))
        return {
            "gate": torch.sigmoid(d) * e,
            "weights": torch.softmax(hidden + 1e-3, -1),
            "sum": (a + torch.tensor(2.0)).sum(1),
        }


class Tied(nn.Module):
    """One matrix, twice: embedding and output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens))).mean(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(3, 8)

    def forward(
        self, left: Tensor, right: Tensor, scale: float = 2.0, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if left.dim() != 2:
            raise ValueError("two dimensions")
        x = self.a(left) * scale + self.b(right)
        if mask is not None:
            x = x * mask
        return x, x.sum(dim=1)


NETWORKS: dict[str, tuple[type[nn.Module], tuple[Tensor, ...]]] = {
    "simple_cnn": (SimpleCNN, (torch.randn(2, 1, 28, 28),)),
    "official_mnist": (OfficialMnist, (torch.randn(1, 1, 28, 28),)),
    "resnet20": (CifarResNet, (torch.randn(2, 3, 32, 32),)),
    "resnet18": (ResNet18, (torch.randn(1, 3, 64, 64),)),
    "vit": (SmallVit, (torch.randn(2, 3, 32, 32),)),
    "text": (TextNet, (torch.randint(0, 100, (3, 12)),)),
    "mlp": (Mlp, (torch.randn(4, 12),)),
    "recurrent": (Recurrent, (torch.randn(2, 7, 6),)),
    "encoder": (Encoder, (torch.randn(2, 5, 16),)),
    "splits": (Splits, (torch.randn(3, 4),)),
    "tied": (Tied, (torch.randint(0, 20, (2, 6)),)),
    "two_inputs": (TwoInputs, (torch.randn(3, 4), torch.randn(3, 3))),
}
