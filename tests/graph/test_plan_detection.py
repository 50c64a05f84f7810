"""The plans of the four published detectors, and what their two settings do."""

import pytest
import torch
from golden import GOLDEN_DETECTORS, load_fixture
from networks import UNet, bits, filled, images, network, planned

from qdrop.config import LayerBits, QuantConfig
from qdrop.graph.capture import capture
from qdrop.graph.plan import PlanError, make_plan
from qdrop.graph.shapes import infer_shapes
from qdrop.models import build_model

DETECTOR = {"first_w_bit": 8, "last_w_bit": None, "last_a_bit": None, "placement": "units", "divide": ["neck"]}
SLOW = [name for name in GOLDEN_DETECTORS if name != "retinanet_r50_fpn_2x"]


def renamed(name):
    """A name of ours as the fixture has it: it counts the activation function to the layer before."""
    *path, kind = name.split(".")
    place = {"add": "", "conv1": "conv1_relu", "conv2": "conv2_relu", "0": "downsample"}
    in_block = (len(path) == 4 and path[1].startswith("layer")) or path[3:4] == ["downsample"]
    if in_block:
        path = [*path[:3], *filter(None, [place.get(path[-1], path[-1])])]
    if kind == "weight_quantizer":
        return ".".join([*path, "module.weight_fake_quant"])
    return ".".join([*path, "block" if len(path) == 3 and in_block else "layer"]) + "_post_act_fake_quantize"


def flat(name):
    return name.replace(".layer_post", "_layer_post").replace(".block_post", "_block_post")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in GOLDEN_DETECTORS])
def test_golden(name):
    expected = load_fixture("detection_plans")["plans"][name]
    graph = capture(build_model(GOLDEN_DETECTORS[name]).features(), torch.randn(2, 3, 64, 64))
    infer_shapes(graph, {"input": torch.zeros(2, 3, 160, 192)})
    plan = make_plan(graph, bits(2, 4, **DETECTOR))
    theirs = [
        (name, kind, bit, integers, shape if kind == "weight" else shape[1:])
        for name, kind, bit, _, integers, shape, _ in expected["quantizers_in_execution_order"]
    ]
    ours = [(flat(renamed(s.name)), str(s.kind), s.bit, list(s.integers), list(s.shape)) for s in plan.quantizers]
    assert ours == [(flat(name), *rest) for name, *rest in theirs]
    for unit, told in zip(plan.units, expected["units_in_reconstruction_order"], strict=True):
        counts = len(told["convs"]), len(told["activation_quantizers"])
        assert (unit.module, unit.kind, unit.weights, unit.activation_quantizers) == (
            told["name"],
            told["kind"],
            *counts,
        )
    frozen = {"backbone.conv1": LayerBits(a_quantizer="FixedFakeQuantize")}
    frozen["backbone.layer1"] = frozen["backbone.conv1"]
    as_published = make_plan(graph, bits(2, 4, **DETECTOR, overrides=frozen))
    learned = [s.quantizer == "LSQFakeQuantize" for s in as_published.quantizers if s.kind == "activation"]
    units = expected["units_in_reconstruction_order"]
    assert learned == [scale for unit in units for scale in unit["activation_scales_trained_by_published_code"]]


def names(plan, kind):
    return [spec.layer for spec in plan.quantizers if spec.kind == kind]


def test_units_give_what_is_quantized():
    """The same network, with other placements: what only an addition reads, and what the network returns."""
    model = filled(UNet())
    published, of_units = (planned(model, bits(2, 4, placement=p))[1] for p in ("published", "units"))
    assert names(published, "weight") == names(of_units, "weight")
    assert set(names(of_units, "activation")) >= set(names(published, "activation"))


def test_a_divided_block_is_learned_layer_by_layer():
    plan = planned(network("residual"), bits(2, 4, divide=["body.0"]))[1]
    assert [unit.module for unit in plan.units] == ["stem.0", "body.0.conv1", "body.0.conv2", "body.1", "head"]
    assert names(plan, "activation") == names(planned(network("residual"), bits(2, 4))[1], "activation")


def test_a_divided_block_gives_its_layers():
    plan = planned(network("residual"), bits(2, 4, divide=["body.0"], placement="units"))[1]
    assert names(plan, "activation") == ["stem.0", "body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.add"]


def test_a_scale_is_kept_where_the_config_says_so():
    config = bits(2, 4, overrides={"body.1": LayerBits(a_quantizer="FixedFakeQuantize")})
    kinds = {s.layer: s.quantizer for s in planned(network("residual"), config)[1].quantizers if s.kind == "activation"}
    assert {name for name, kind in kinds.items() if kind == "FixedFakeQuantize"} == {"body.1.conv1", "body.1.add"}
    with pytest.raises(PlanError, match="matches no quantized activation"):
        planned(network("residual"), QuantConfig(overrides={"head": LayerBits(a_quantizer="FixedFakeQuantize")}))


def test_a_pyramid_takes_images_of_any_size():
    """Its sizes are asked from the map that is added, without a second capture."""
    from qdrop.models.detection.pyramid import FeaturePyramid

    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stems = torch.nn.ModuleList(torch.nn.Conv2d(3, 4, 3, stride=s, padding=1) for s in (2, 4))
            self.neck = FeaturePyramid((4, 4), extra_convolutions=1)

        def forward(self, x):
            return self.neck([stem(x) for stem in self.stems])

    model = Maps().eval()
    graph = capture(model, images(2, size=16))
    assert graph.meta["any_size"]
    for size in (11, 24):
        for ours, theirs in zip(graph(images(3, size=size)), model(images(3, size=size)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_unit_whose_size_is_asked_gives_its_quantized_value_alone():
    """The finer map of a pyramid says how far the coarser one is enlarged."""
    from qdrop.graph.insert import quantize_graph
    from qdrop.graph.split import segments

    class Merged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.last = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x):
            fine, coarse = self.fine(x), self.coarse(x)
            return self.last(fine + torch.nn.functional.interpolate(coarse, size=fine.shape[-2:]))

    graph, plan = planned(Merged().eval(), bits(4, 4, placement="units"))
    parts = {part.name: part for part in segments(quantize_graph(graph, plan), plan)}
    assert [len(parts[name].outputs) for name in ("fine", "coarse", "last")] == [1, 1, 1]
    assert parts["fine"].outputs[0].startswith("fine_output_quantizer")
