"""Small transformers, written in the ways that people write them."""

import torch
from torch import nn
from torch.nn import functional as F


class Joined(nn.Module):
    """timm's way: one qkv layer, sizes from x.shape; `how` is where q, k and v come apart."""

    def __init__(self, width, heads, dim, how="timm"):
        super().__init__()
        self.heads, self.dim, self.how, self.scale = heads, dim, how, dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * heads * dim), nn.Linear(heads * dim, width)
        self.dropout, self.unflatten = nn.Dropout(0.1), nn.Unflatten(2, (3, heads, dim))

    def forward(self, x):
        b, n, c = x.shape
        h, d = self.heads, self.dim
        if self.how == "timm":  # the width of the head from that of the stream
            qkv = self.qkv(x).reshape(b, n, 3, h, c // h).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        elif self.how == "index":
            qkv = self.qkv(x).view(b, -1, 3, h, d).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
        elif self.how == "chunk":
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (t.view(b, n, h, d).transpose(1, 2) for t in (q, k, v))
        elif self.how == "split":
            q, k, v = torch.split(self.qkv(x), h * d, dim=2)
            q, k, v = (t.reshape(b, n, h, d).transpose(1, 2) for t in (q, k, v))
        elif self.how == "inside":  # q, k and v of a head side by side
            q, k, v = self.qkv(x).view(b, n, h, 3 * d).transpose(1, 2).chunk(3, dim=-1)
        else:
            q, k, v = self.unflatten(self.qkv(x)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how in ("index", "split"):
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.dropout(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        mixed = mixed.transpose(1, 2)
        return self.proj(mixed.reshape(b, n, c) if self.how == "timm" else mixed.flatten(2))


class Apart(nn.Module):
    """Three layers, and sizes in the several ways that there are."""

    def __init__(self, width, heads, dim, how="view", shared=1):
        super().__init__()
        self.heads, self.dim, self.how, self.shared = heads, dim, how, shared
        self.q, self.proj = nn.Linear(width, heads * dim), nn.Linear(heads * dim, width)
        self.k, self.v = (nn.Linear(width, heads // shared * dim, bias=False) for _ in range(2))

    def split(self, x, heads):
        if self.how == "size":
            return x.view(x.size()[:-1] + (heads, self.dim)).permute(0, 2, 1, 3)  # noqa: RUF005
        if self.how == "minus":
            return x.view(x.shape[0], x.shape[1], -1, self.dim).transpose(1, 2)
        if self.how == "divided":
            return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)
        return x.view(x.size(0), -1, heads, self.dim).transpose(1, 2)

    def forward(self, x):
        q, few = self.split(self.q(x), self.heads), self.heads // self.shared
        k, v = self.split(self.k(x), few), self.split(self.v(x), few)
        if self.shared > 1:
            if self.how == "view":
                k, v = k.repeat_interleave(self.shared, dim=1), v.repeat_interleave(self.shared, dim=1)
            else:
                b, n = x.size(0), x.size(1)
                sizes = b, few, self.shared, n, self.dim
                k, v = (t[:, :, None].expand(*sizes).reshape(b, self.heads, n, self.dim) for t in (k, v))
        if self.how == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / self.dim**0.5
            mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v)
            return self.proj(mixed.flatten(2))
        scores = torch.matmul(q, k.transpose(-1, -2)) / self.dim**0.5
        mixed = torch.matmul(F.softmax(scores, dim=-1), v).transpose(1, 2).contiguous()
        if self.how == "size":
            return self.proj(mixed.view(mixed.size()[:-2] + (self.heads * self.dim,)))  # noqa: RUF005
        return self.proj(mixed.view(x.size(0), x.size(1), self.heads * self.dim))


class Transformer(nn.Module):
    """A ViT over rows of (tokens, features): class token, positions, blocks of pre-norm attention and MLP."""

    def __init__(self, attention, width=16, tokens=5, features=6, depth=2, mlp=24):
        super().__init__()
        self.embed, self.cls = nn.Linear(features, width), nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attn": attention(width),
                    "norm2": nn.LayerNorm(width),
                    "fc1": nn.Linear(width, mlp),
                    "fc2": nn.Linear(mlp, width),
                }
            )
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.embed(x)], dim=1) + self.position
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["fc2"](F.gelu(block["fc1"](block["norm2"](x))))
        return self.head(self.norm(x)[:, 0])


class Encoder(nn.Module):
    """torch's own encoder, over tokens with padding or over rows of features."""

    def __init__(self, width=16, heads=4, causal=False, **how):
        super().__init__()
        self.embed, self.first = nn.Embedding(20, width), how.get("batch_first", False)
        layer = nn.TransformerEncoderLayer(width, heads, 24, **how)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)
        mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask if causal else torch.zeros_like(mask))

    def forward(self, ids, mask):
        x = self.embed(ids)
        x = self.encoder(x if self.first else x.transpose(0, 1), self.mask, mask == 0)
        return self.head(x[:, 0] if self.first else x[0])


class Between(nn.Module):
    """nn.MultiheadAttention of rows to fewer rows of another width, and a decoder layer."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 16), nn.Linear(6, 8)
        self.attend = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, dropout=dropout, batch_first=True)
        self.decode, self.head = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        wide, narrow = self.wide(x), self.narrow(x[:, :3])
        mixed, _ = self.attend(wide, narrow, narrow)
        return self.head(self.decode(wide + mixed, wide[:, 1:]))


class Biased(nn.Module):
    """Windowed attention with a table of biases for relative positions, a column for every head."""

    def __init__(self, width, heads, dim, tokens=6):
        super().__init__()
        self.heads, self.dim, self.tokens = heads, dim, tokens
        self.qkv, self.proj = nn.Linear(width, 3 * heads * dim), nn.Linear(heads * dim, width)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        place = torch.arange(tokens)
        self.register_buffer("index", place[:, None] - place[None] + tokens - 1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.dim)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(self.tokens, self.tokens, -1).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * self.dim**-0.5 + bias.unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
