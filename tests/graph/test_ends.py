"""Where a network ends: outputs, what the last layers read, biases."""

import torch
from networks import Network, Residual, filled, images, quantized
from torch import nn

from qdrop.graph.capture import capture
from qdrop.graph.ends import biases, giving, last_read, outputs
from qdrop.quantization.state import quantizing


class TwoHeads(nn.Module):
    """Boxes from the features as they are, classes from a layer of their own; and a constant."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.boxes, self.hidden, self.classes = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1, bias=False)

    def forward(self, x):
        x = self.stem(x).relu()
        return {"boxes": self.boxes(x).sigmoid(), "classes": self.classes(self.hidden(x).relu()), "one": torch.ones(1)}


def test_a_network_with_two_ends():
    graph = capture(filled(TwoHeads()), {"x": images(2)})
    both = giving(graph, [*outputs(graph), *last_read(graph)])(images(3))
    assert [tuple(value.shape) for value in both] == [(3, 2, 6, 6), (3, 3, 6, 6), (3, 6, 6, 6), (3, 4, 6, 6)]
    assert torch.equal(both[0], graph(images(3))["boxes"])
    assert biases(graph) == ["stem.bias", "boxes.bias", "hidden.bias"]


def test_the_features_of_a_classifier_are_what_its_last_layer_reads_in_both_precisions():
    network, _ = quantized(filled(Network(Residual())))
    seen = giving(network, last_read(network))
    for on in (False, True):
        with torch.no_grad(), quantizing(network, weights=on, activations=on):
            (features,) = seen(images())
            again = features @ network.get_parameter("head.weight").T + network.get_parameter("head.bias")
            assert features.shape == (8, 6)
            assert torch.allclose(again, network(images()), atol=1e-5) is not on
