"""Multiply-accumulates of attention, which torch may compute by one operator, or count by none."""

import pytest
import torch
from torch import nn

from workers.nn.macs import macs


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.block, self.weights = nn.MultiheadAttention(16, 4, batch_first=True), weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, x, x, need_weights=self.weights)[0]


ATTENTION = 5 * 16 * 48 + 2 * 4 * 5 * 5 * 4 + 5 * 16 * 16


@pytest.mark.parametrize("weights", [True, False])
def test_of_attention(weights: bool) -> None:
    assert macs(Attention(weights), (torch.zeros(1, 5, 16),)) == ATTENTION


def test_of_a_transformers_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    assert macs(layer, (torch.zeros(1, 5, 16),)) == ATTENTION + 2 * 5 * 16 * 32
    assert torch.backends.mha.get_fastpath_enabled() == before
