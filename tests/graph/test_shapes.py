"""Shape inference by example."""

import pytest
import torch
from torch import Tensor, nn

from qdrop.graph.capture import capture
from qdrop.graph.ops import operation
from qdrop.graph.shapes import LARGEST, infer_shapes, record_shapes


class Parts(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return (first + second).reshape(x.size(0), -1)


@pytest.mark.parametrize("infer", [record_shapes, infer_shapes])
def test_each_value_is_noted(infer):
    graph = capture(Parts(3), torch.ones(2, 3, 5, 5))
    infer(graph, {"x": torch.ones(4, 3, 5, 5)})
    found = {operation(node): node.meta["shapes"] for node in graph.graph.nodes}
    assert found["conv2d"] == [(4, 4, 3, 3)] and found["add"] == [(4, 2, 3, 3)] and found["reshape"] == [(4, 18)]
    (split,) = [node for node in graph.graph.nodes if node.meta["tuple"] and node.op == "call_function"]
    assert split.meta["shapes"] == [(4, 2, 3, 3), (4, 2, 3, 3)]


def test_the_output_comes_back_and_needs_no_gradient():
    out = record_shapes(capture(Parts(3), torch.ones(2, 3, 5, 5)), {"x": torch.ones(4, 3, 5, 5)})
    assert out.shape == (4, 18) and not out.requires_grad


@pytest.mark.parametrize("infer", [record_shapes, infer_shapes])
def test_what_cannot_be_run_says_why_and_prints_nothing(infer, capsys):
    graph = capture(Parts(4), torch.ones(2, 4, 5, 5))
    with pytest.raises(RuntimeError, match="channels"):
        infer(graph, {"x": torch.ones(2, 3, 5, 5)})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_values_beyond_any_network_take_no_memory_and_are_refused():
    graph = capture(nn.Conv2d(3, 64, 1), torch.ones(2, 3, 5, 5))
    side = int((LARGEST / 64) ** 0.5)
    with pytest.raises(ValueError, match=r"more than .* elements are refused"):
        infer_shapes(graph, {"input": torch.zeros(1).expand(2, 3, side, side)})
