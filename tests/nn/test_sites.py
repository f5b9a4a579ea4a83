"""Sites: layers of networks that torch.fx alone cannot follow can be exchanged, too."""

import torch
from torch import nn

from app.domain.records import Signature, Tensor
from workers.net import Net
from workers.nn.sites import graph_of, sites


class Halves(nn.Module):
    """torch.fx does not know how many parts it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        return self.left(a) + self.right(b)


def test_a_network_that_takes_tensors_apart_has_sites() -> None:
    module = Halves().eval()
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 8)),), outputs=(Tensor(name="logits", shape=(-1, 6)),))
    net = Net(module, {}, signature)
    graph = graph_of(net)
    found, reasons = sites(graph, net.example())
    assert (sorted(found), reasons) == (["left", "right"], {})
    x = torch.randn(5, 8)
    assert torch.allclose(graph(x), module(x))
