import pytest
import torch
from torch import Tensor, fx, nn

from qdrop.quantization.shapes import TensorMeta, record_shapes


class Parts(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return (first + second).reshape(x.size(0), -1)


def test_each_value_is_noted():
    graph = fx.symbolic_trace(Parts(3))
    out = record_shapes(graph, torch.ones(2, 3, 5, 5))
    found = {node.name: (node.meta["type"], node.meta["tensor_meta"]) for node in graph.graph.nodes}
    half = TensorMeta(torch.Size([2, 2, 3, 3]), torch.float32)
    assert out.shape == (2, 18) and not out.requires_grad
    assert found["conv"] == (Tensor, TensorMeta(torch.Size([2, 4, 3, 3]), torch.float32))
    assert found["chunk"] == (tuple, (half, half))
    assert found["size"] == (int, None)


def test_what_cannot_be_run_says_why_and_prints_nothing(capsys):
    with pytest.raises(RuntimeError, match="to have 4 channels"):
        record_shapes(fx.symbolic_trace(Parts(4)), torch.ones(2, 3, 5, 5))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
