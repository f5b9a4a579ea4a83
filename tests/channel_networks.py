"""Small networks with the shapes and constants that channel pruning has to get right."""

import torch
from torch import nn
from torch.nn import functional as F


class SimpleCNN(nn.Module):
    """The article's network; `flat` is how it goes from channels to features."""

    def __init__(self, flat="view"):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
        self.flat = flat

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        if self.flat == "view":
            x = x.view(-1, 320)
        elif self.flat == "size":
            x = x.view(x.size(0), 320)
        elif self.flat == "shape":
            x = x.view(x.shape[0], -1)
        elif self.flat == "reshape":
            x = x.reshape(-1, 20 * 4 * 4)
        elif self.flat == "tuple":
            x = torch.reshape(x, (-1, 320))
        elif self.flat == "keyword":
            x = torch.reshape(x, shape=(-1, 320))
        elif self.flat == "computed":
            x = x.view(-1, x.size(1) * 16)
        else:
            x = torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


class Unfold(nn.Module):
    """Features back to channels: a decoder's view(-1, C, H, W), or unflatten."""

    def __init__(self, how="view"):
        super().__init__()
        self.enc, self.fc, self.how = nn.Linear(12, 24), nn.Linear(24, 8 * 4 * 4), how
        self.back = nn.Unflatten(1, (8, 4, 4))
        self.up, self.norm, self.out = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = torch.sigmoid(self.fc(torch.sigmoid(self.enc(x))))
        if self.how == "view":
            x = x.view(-1, 8, 4, 4)
        elif self.how == "unflatten":
            x = x.unflatten(1, (8, 4, 4))
        else:
            x = self.back(x)
        return self.out(F.relu(self.norm(self.up(x))))


class OptionA(nn.Module):
    """A residual network whose shortcuts are a slice and channels of zeros, as in He et al.'s CIFAR networks."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList([Block(8, 8), Block(8, 16), Block(16, 16), Block(16, 32)])
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


class Block(nn.Module):
    def __init__(self, taken, made):
        super().__init__()
        stride = 1 if taken == made else 2
        self.conv1, self.bn1 = nn.Conv2d(taken, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made)
        self.conv2, self.bn2 = nn.Conv2d(made, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made)
        self.grows, self.pad = taken != made, made // 4

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(out + x)


class Mixed(nn.Module):
    """Concatenation, depthwise and grouped convolutions, squeeze and excitation, chunks and splits."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.depth, self.group = nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.Conv2d(20, 16, 1, groups=4)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.c, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(8 + 3 + 5, 5)

    def forward(self, x):
        x = torch.cat([F.silu(self.a(x)), F.gelu(self.b(x))], dim=1)
        x = torch.tanh(self.group(F.hardswish(self.depth(x))))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        left, right = self.c(x).chunk(2, dim=1)
        x = torch.cat([left * torch.sigmoid(right), left + right], 1).mean(dim=(2, 3))
        head, tail = torch.split(x, [8, 8], dim=1)
        return self.fc(torch.cat([head[:, 3:], head[:, :3], tail], 1))


class Attention(nn.Module):
    """A small transformer that reshapes by constants: only the inside of its MLP can go."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(6, 16), nn.Parameter(torch.randn(1, 5, 16))
        self.norm1, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x) + self.position
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.softmax(q @ k.transpose(-2, -1) / 8**0.5, dim=-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(-1, 5, 16))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])
