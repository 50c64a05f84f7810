"""The iteration as a graph: the same numbers as written out, with nothing of the example baked in."""

from dataclasses import replace

import pytest
import torch
from one_step import CONFIG, blocks, decoder, gradients

from qdrop.config import ActivationQConfig, QuantConfig
from qdrop.graph.scopes import learning_rounding
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import dropping, quantizers, quantizing
from qdrop.solver.step import UnitLoss, eager, traced


def by_graph(loss, inputs):
    graph, values = traced(loss, inputs)
    return lambda batch: graph(values, batch.tensors())


QUANT = [None, QuantConfig(a_qconfig=ActivationQConfig("LSQPlusFakeQuantize", bit=2))]


@pytest.mark.parametrize("quant", QUANT, ids=["lsq", "lsq+"])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
def test_the_graph_computes_what_autograd_does(drop_prob, quant):
    part, inputs = blocks(quant=quant)[0]
    config = replace(CONFIG, drop_prob=drop_prob)
    expected, learned = gradients(part, inputs, lambda loss, _: eager(loss), config)
    found, _ = gradients(part, inputs, by_graph, config)
    assert len(expected) == len(found) == 2 + len(learned)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_graph_of_a_unit_with_two_inputs():
    part, inputs = decoder()
    assert len(inputs.full) == len(inputs.quantized) == 2
    expected, learned = gradients(part, inputs, lambda loss, _: eager(loss))
    found, _ = gradients(part, inputs, by_graph)
    assert len(expected) == len(found) == 2 + len(learned)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_graph_follows_its_inputs():
    """Nothing of the example is baked in: other seeds, another beta and other roundings are taken as they come."""
    part, inputs = blocks()[0]
    loss = UnitLoss(part.module, CONFIG)
    with quantizing(part.module), dropping(part.module, loss.drop), learning_rounding(part.module):
        graph, values = traced(loss, inputs)
        other = replace(
            inputs,
            seeds=inputs.seeds + 77,
            beta=torch.tensor(9.0),
            weight=torch.tensor(0.0),
            full=(inputs.full[0] * 0.5,),
        )
        with torch.no_grad():
            for parameter in loss.learned().values():
                parameter.mul_(1.1)
        for ours, theirs in zip(graph(values, other.tensors()), eager(loss)(other), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_bfloat16_computes_the_layers_alone():
    """Losses, roundings and scales stay in float32, and the losses stay near those in float32."""
    part, inputs = blocks()[0]
    seen = []
    first, *_ = quantizers(part.module, Kind.WEIGHT)
    handle = first.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    exact, _ = gradients(part, inputs, lambda loss, _: eager(loss))
    found, _ = gradients(part, inputs, lambda loss, _: eager(loss), replace(CONFIG, precision="bfloat16"))
    handle.remove()
    assert seen == [torch.float32] * 2 and all(value.dtype == torch.float32 for value in found)
    assert not torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1])
    torch.testing.assert_close(found[0], exact[0], rtol=0.05, atol=0)
