"""Learning over the whole network: what it moves, what it leaves, what happens where it does not help."""

from dataclasses import replace

import pytest
import torch
from networks import Network, Residual, SqueezeExcite, filled, images, quantized

import qdrop
from qdrop.config import NetworkConfig
from qdrop.graph.insert import quantized_weights
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver.network.augment import vary
from qdrop.solver.network.learned import integers, offsets, scales, values
from qdrop.solver.network.stage import Distance, judged, learn_network, relative_error
from qdrop.solver.unit import ReconstructionError

CPU = torch.device("cpu")
CONFIG = NetworkConfig(batch_size=4, iters=30)
INPUTS = {"x": images(16)}


def tensors(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture
def network():
    return quantized(filled(Network(Residual(), SqueezeExcite())))[0]


def test_a_scale_moves_by_shares_of_its_size_and_a_bias_by_shares_of_its_layers_deviation(network):
    moved = {item.name: item for item in (*scales(network), *offsets(network))}
    of_layers = {found.name.removesuffix("weight") + "bias" for found in quantized_weights(network)}
    assert set(moved) == {f"{quantizer.spec.name}.scale" for quantizer in quantizers(network)} | of_layers
    with torch.no_grad():
        for item in moved.values():
            item.theta.fill_(0.5)
    scale, bias = moved["head.weight_quantizer.scale"], moved["head.bias"]
    assert torch.allclose(values([scale])[scale.name], scale.start * 1.6487213)
    assert torch.allclose(values([bias])[bias.name], bias.start + 0.5 * bias.start.std(correction=0))


def test_the_distance_is_that_of_outputs_and_features(network):
    out, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])
    assert float(relative_error(out, target)) == pytest.approx(1 / 4)  # squared error 1, variance 4
    alone, once, both = (Distance(network, weight)({}, INPUTS).item() for weight in (0.0, 1.0, 2.0))
    features = once - alone
    assert alone > 0 and both == pytest.approx(alone + 2 * features)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("round_rate", [0.0, 3e-3])
def test_it_learns_scales_and_biases_and_integers_where_they_have_a_rate(network, augment, round_rate):
    before = tensors(network)
    config = replace(CONFIG, augment=augment, features=0.0, batch_size=16, round_rate=round_rate)
    (varied,) = judged(INPUTS, config, 1)
    assert torch.equal(varied["x"], INPUTS["x"]) != augment
    with torch.no_grad(), quantizing(network, weights=False, activations=False):
        target = network(**varied)
    report = learn_network(network, INPUTS, config, 1, CPU)
    assert report.loss_after < report.loss_before
    with torch.no_grad(), quantizing(network):
        assert report.loss_after == pytest.approx(float(relative_error(network(**varied), target)), rel=1e-4)
    changed = {name for name, value in tensors(network).items() if not torch.equal(value, before[name])}
    others = changed - {item.name for item in (*scales(network), *offsets(network))}
    assert len(changed) - len(others) == len(scales(network)) + len(offsets(network))
    assert others <= {item.name for item in integers(network)} and bool(others) == bool(round_rate)


def test_an_integer_starts_where_its_unit_left_it_and_moves_by_steps_within_its_grid(network):
    quantizer = next(q for q in quantizers(network) if q.spec.name == "body.0.conv1.weight_quantizer")
    quantizer.rounding.levels.flatten()[:2] = torch.tensor([0, 2**quantizer.spec.bit - 1])
    (item,) = (item for item in integers(network) if item.name.startswith(quantizer.spec.name))
    assert torch.equal(values([item])[item.name].round(), quantizer.rounding.levels.float())
    with torch.no_grad():
        item.theta.fill_(-1.0)
    moved = values([item])[item.name]
    assert torch.allclose(moved.detach(), (quantizer.rounding.levels.float() - 1).clamp(min=0))
    (grad,) = torch.autograd.grad(moved.sum(), item.theta)
    assert torch.equal(grad == 1, quantizer.rounding.levels > 0)  # straight through, but for what is held at the end


def test_the_same_seed_gives_the_same_network(network):
    start = tensors(network)
    found = []
    for seed in (1, 1, 2):
        network.load_state_dict(start)
        learn_network(network, INPUTS, CONFIG, seed, CPU)
        found.append(tensors(network)["head.bias"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_what_does_not_help_is_undone_and_said(network, caplog):
    before = tensors(network)
    report = learn_network(network, INPUTS, replace(CONFIG, iters=3, scale_rate=9.0), 1, CPU)
    assert report.loss_after >= report.loss_before
    assert all(torch.equal(value, before[name]) for name, value in tensors(network).items())
    assert "did not help, and is undone" in caplog.text and "quant.network.scale_rate" in caplog.text


def test_a_loss_that_is_not_finite_is_said(network):
    with pytest.raises(ReconstructionError, match=r"the whole network: the loss is nan.*scale_rate"):
        learn_network(network, INPUTS, replace(CONFIG, scale_rate=1e6, bias_rate=1e6), 1, CPU)


def test_images_are_shifted_and_mirrored_and_nothing_else_is():
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.rand(64, 3, 16, 16) + 1, "words": torch.arange(6).view(2, 3), "rows": torch.rand(64, 3)}
    varied = vary(batch, generator)
    assert varied["words"] is batch["words"] and varied["rows"] is batch["rows"]
    inside = varied["x"][:, :, 2:-2, 2:-2]  # a shift goes up to 2 of 16 pixels
    flips = 0
    for image, before in zip(inside, batch["x"], strict=True):
        places = [before[:, i : i + 12, j : j + 12] for i in range(5) for j in range(5)]
        straight = any(torch.equal(image, place) for place in places)
        flips += not straight
        assert straight or any(torch.equal(image, place.flip(2)) for place in places)
    assert 16 < flips < 48
    assert not torch.equal(vary(batch, generator)["x"], varied["x"])


def test_the_call_and_the_file(tmp_path):
    model = filled(Network(Residual()))
    config = {"recon": {"iters": 4, "batch_size": 4}, "network": {"iters": 10, "batch_size": 4}, "calibrate": 16}
    network, report = qdrop.quantize(model, images(16), config)
    assert report.network.loss_after < report.network.loss_before and "the whole network" in str(report)
    qdrop.save(network, tmp_path / "network.safetensors")
    assert torch.equal(qdrop.load(tmp_path / "network.safetensors")(images()), network(images()))
