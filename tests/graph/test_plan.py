import json

import pytest
import torch
from golden import GOLDEN_MODELS, load_fixture
from networks import (
    NETWORKS,
    FoldedActivation,
    Network,
    OpenStage,
    OpenWindows,
    PreActivation,
    Residual,
    UNet,
    Windowed,
    bits,
    filled,
    images,
    network,
    planned,
)
from torch import nn

from qdrop.config import ActivationQConfig, LayerBits, QuantConfig, WeightQConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.ops import owner
from qdrop.graph.plan import Plan, PlanError, make_plan
from qdrop.graph.split import segments
from qdrop.graph.units.boundary import FOLDED
from qdrop.models import build_model

STEM = ["stem.0 w8", "stem.0 a4"]
HEAD = ["head w8"]

# Each network's quantizers as "name kind+bits", and its units as "path weights+activations".
EXPECTED = {
    "residual": (
        [
            *STEM,
            *("body.0.conv1 w2", "body.0.conv1 a4", "body.0.conv2 w2", "body.0.add a4"),
            *("body.1.conv1 w2", "body.1.conv1 a4", "body.1.conv2 w2", "body.1.add a8"),
            *HEAD,
        ],
        ["stem.0 layer 1+1", "body.0 block 2+2", "body.1 block 2+2", "head layer 1+0"],
    ),
    "concat": (
        [*STEM, "body.0.a.0 w2", "body.0.a.0 a8", "body.0.b.0 w2", "body.0.b.0 a8", *HEAD],
        ["stem.0 layer 1+1", "body.0 block 2+2", "head layer 1+0"],
    ),
    "squeeze": (  # the gate is read by no product
        [
            *STEM,
            *("body.0.conv.0 w2", "body.0.conv.0 a4", "body.0.down w2", "body.0.down a4"),
            *("body.0.up w2", "body.0.mul a8"),
            *HEAD,
        ],
        ["stem.0 layer 1+1", "body.0 block 3+3", "head layer 1+0"],
    ),
    "fork": (  # conv1 is quantized for conv2, though it also goes into the add
        [*STEM, "body.0.conv1.0 w2", "body.0.conv1.0 a4", "body.0.conv2.0 w2", "body.0.add a8", *HEAD],
        ["stem.0 layer 1+1", "body.0 block 2+2", "head layer 1+0"],
    ),
    "chain": (  # neither branch nor the inner sum
        [*STEM, "body.0.a.0 w2", "body.0.b.0 w2", "body.0.add_1 a8", *HEAD],
        ["stem.0 layer 1+1", "body.0 block 2+1", "head layer 1+0"],
    ),
    "preactivation": (  # the sum feeds the ReLU of the next block and its add: quantized once, at the sum
        [
            *STEM,
            *("body.0.conv1.0 w2", "body.0.conv1.0 a4", "body.0.conv2.0 w2", "body.0.add a4"),
            *("body.1.conv1.0 w2", "body.1.conv1.0 a4", "body.1.conv2.0 w2", "body.1.add a8"),
            *HEAD,
        ],
        ["stem.0 layer 1+1", "body.0 block 2+2", "body.1 block 2+2", "head layer 1+0"],
    ),
    "unet": (
        [
            *STEM,
            *("encoder.conv1 w2", "encoder.conv1 a4", "encoder.conv2 w2", "encoder.add a4"),
            *("decoder.conv1.0 w2", "decoder.conv1.0 a4", "decoder.conv2.0 w2", "decoder.conv2.0 a8"),
            *HEAD,
        ],
        [
            *("stem.0 layer 1+1", "encoder block 2+2", "decoder block 2+2", "head layer 1+0"),
        ],
    ),
    "wrapper": (
        [
            *("network.stem.0 w8", "network.stem.0 a4", "network.body.0.conv1 w2", "network.body.0.conv1 a4"),
            *("network.body.0.conv2 w2", "network.body.0.add a8", "network.head w8"),
        ],
        ["network.stem.0 layer 1+1", "network.body.0 block 2+2", "network.head layer 1+0"],
    ),
}


def described(plan):
    quantizers = [f"{s.name.rpartition('.')[0]} {s.kind[0]}{s.bit}" for s in plan.quantizers]
    units = [f"{u.module} {u.kind} {u.weights}+{u.activation_quantizers}" for u in plan.units]
    return quantizers, units


def bits_of(plan):
    return dict(line.rsplit(" ", 1) for line in reversed(described(plan)[0]) if " w" in line), dict(
        line.rsplit(" ", 1) for line in described(plan)[0] if " a" in line
    )


@pytest.fixture(scope="module")
def graph():
    return capture(network("residual"), images(2))


# ---- golden plans ----


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden(name):
    expected = load_fixture("quantizer_plans")[name]
    model = build_model(GOLDEN_MODELS[name]).eval()
    plan = make_plan(capture(model, torch.zeros(1, 3, 224, 224)), bits(2, 4))
    quantizers = [{"kind": str(s.kind), "bit": s.bit, "shape": list(s.shape)} for s in plan.quantizers]
    assert quantizers == expected["quantizers_in_execution_order"]
    units = [
        {"module": u.module, "kind": u.kind, "weights": u.weights, "activation_quantizers": u.activation_quantizers}
        for u in plan.units
    ]
    assert units == expected["units"]
    assert plan.notes == ()


# ---- small networks ----


def test_every_small_network_is_told():
    assert EXPECTED.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks(name):
    quantizers, units = described(planned(network(name))[1])
    assert quantizers == EXPECTED[name][0]
    assert units == EXPECTED[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_in_one_unit(name):
    plan = planned(network(name))[1]
    nodes = [node for unit in plan.units for node in unit.nodes]
    assert len(nodes) == len(set(nodes))
    assert {s.node for s in plan.quantizers} <= set(nodes)
    names = [s.name for s in plan.quantizers]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_granularity(name):
    plan = planned(network(name), granularity="layer")[1]
    assert {unit.kind for unit in plan.units} == {"layer"}
    weighted = [s.layer for s in plan.quantizers if s.kind == "weight"]
    assert [unit.module for unit in plan.units] == weighted
    assert described(plan)[0] == EXPECTED[name][0]
    assert plan.notes == ()


def test_block_that_reads_two_values_is_a_unit():
    graph, plan = planned(filled(UNet()))
    assert plan.notes == ()
    (decoder,) = [part for part in segments(quantize_graph(graph, plan), plan) if part.name == "decoder"]
    assert len(decoder.inputs) == 2 and len(decoder.outputs) == 1


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_layers_on_windows_are_one_unit_with_what_folds_them(granularity):
    graph, plan = planned(filled(Network(Windowed(), nn.ReLU())), granularity=granularity)
    assert described(plan)[1] == ["stem.0 layer 1+1", "body.0 block 2+2", "head layer 1+0"]
    (activation,) = [node for node in graph.graph.nodes if owner(node) == "body.1"]
    assert activation.name in plan.units[1].nodes
    notes = {"block": (), "layer": (f"'body.0' is reconstructed as one: a layer inside {FOLDED}",)}
    assert plan.notes == notes[granularity]


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_a_layer_on_windows_outside_any_module_is_in_no_unit(granularity):
    plan = planned(filled(OpenWindows()), granularity=granularity)[1]
    assert described(plan)[1] == ["stem layer 1+1", "head layer 1+0"]
    assert plan.notes == (f"layer 'inner' {FOLDED}, and is in no unit: it is rounded to the nearest",)


def test_a_module_around_windows_is_not_most_of_the_network():
    """Six residual blocks and a layer on windows in one module: the blocks stay units."""
    stage = OpenStage(*(Residual() for _ in range(6)))
    for granularity, units in (("block", 6), ("layer", 12)):
        plan = planned(filled(Network(stage)), granularity=granularity)[1]
        assert len(plan.units) == 2 + units
        assert plan.notes[-1] == f"layer 'body.0.inner' {FOLDED}, and is in no unit: it is rounded to the nearest"


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize(
    "blocks", [(Residual, Windowed, PreActivation), (Windowed, PreActivation), (PreActivation, Windowed, Windowed)]
)
def test_units_share_no_node(blocks, granularity):
    plan = planned(filled(Network(*(block() for block in blocks))), granularity=granularity)[1]
    nodes = [node for unit in plan.units for node in unit.nodes]
    assert len(nodes) == len(set(nodes))


def test_what_folds_a_layers_output_is_not_of_its_unit():
    """The activation function behind it would see windows."""
    _, plan = planned(filled(FoldedActivation()), granularity="layer")
    assert described(plan)[1] == ["stem layer 1+0", "head layer 1+0"] and plan.notes == ()


def test_image_and_output_are_not_quantized():
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()))
    assert described(planned(model)[1])[0] == ["0 w8", "0 a8", "2 w8"]


def test_a_single_layer():
    quantizers, units = described(planned(filled(nn.Sequential(nn.Conv2d(3, 4, 1))))[1])
    assert quantizers == ["0 w8"] and units == ["0 layer 1+0"]


def test_shapes():
    shapes = {s.name: s.shape for s in planned(network("residual"))[1].quantizers}
    assert shapes["stem.0.weight_quantizer"] == (6, 3, 3, 3)
    assert shapes["stem.0.output_quantizer"] == (6, 8, 8)
    assert shapes["head.weight_quantizer"] == (5, 6)


def test_channels_of_a_per_channel_activation(graph):
    plan = make_plan(graph, QuantConfig(a_qconfig=ActivationQConfig(ch_axis=1)))
    assert {s.channels for s in plan.quantizers if s.kind == "activation"} == {6}


# ---- configuration ----


def test_first_and_last_layer(graph):
    weights, activations = bits_of(make_plan(graph, bits(3, 3)))
    assert (weights["stem.0"], weights["head"], weights["body.0.conv1"]) == ("w8", "w8", "w3")
    assert (activations["body.1.add"], activations["body.0.add"]) == ("a8", "a3")
    weights, activations = bits_of(make_plan(graph, bits(3, 3, first_w_bit=5, last_w_bit=6, last_a_bit=7)))
    assert (weights["stem.0"], weights["head"], activations["body.1.add"]) == ("w5", "w6", "a7")
    weights, activations = bits_of(make_plan(graph, bits(3, 3, first_w_bit=None, last_w_bit=None, last_a_bit=None)))
    assert {*weights.values(), *activations.values()} == {"w3", "a3"}


def test_activations_left_alone(graph):
    plan = make_plan(graph, bits(2, None))
    assert {str(s.kind) for s in plan.quantizers} == {"weight"}
    assert [u.activation_quantizers for u in plan.units] == [0, 0, 0, 0]
    assert [u.module for u in plan.units] == ["stem.0", "body.0", "body.1", "head"]


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"body.0.conv1": {"w_bit": 4}}, {"body.0.conv1 w4"}),
        ({"body.0": {"w_bit": 4}}, {"body.0.conv1 w4", "body.0.conv2 w4"}),
        ({"body.*.conv2": {"w_bit": 5}}, {"body.0.conv2 w5", "body.1.conv2 w5"}),
        ({"body.1": {"a_bit": 6}}, {"body.1.conv1 a6", "body.1.add a6"}),
        ({"body.1.conv1": {"w_bit": 4, "a_bit": 6}}, {"body.1.conv1 w4", "body.1.conv1 a6"}),
        ({"stem.0": {"w_bit": 4}}, {"stem.0 w4"}),  # stronger than first_w_bit
        ({"head": {"w_bit": 2}}, {"head w2"}),
        ({"body.0": {"w_bit": 4}, "body.0.conv1": {"w_bit": 3}}, {"body.0.conv1 w3", "body.0.conv2 w4"}),
        ({"body.[01].conv2": {"w_bit": 8}}, {"body.0.conv2 w8", "body.1.conv2 w8"}),
    ],
)
def test_overrides(graph, overrides, changed):
    config = bits(2, 4, overrides={k: LayerBits(**v) for k, v in overrides.items()})
    before, after = (set(described(make_plan(graph, c))[0]) for c in (bits(2, 4), config))
    assert after - before == changed


@pytest.mark.parametrize(
    ("pattern", "override", "near"),
    [
        ("bodi.0.conv1", {"w_bit": 4}, "body.0.conv1"),
        ("body.0.conv2", {"a_bit": 4}, "body.0.conv1"),  # its output goes straight into the add
        ("layer7", {"w_bit": 4}, "weight"),
        ("BODY.0", {"w_bit": 4}, "weight"),
        ("nothing.*", {}, "weight or activation"),
    ],
)
def test_override_that_matches_nothing(graph, pattern, override, near):
    with pytest.raises(PlanError) as caught:
        make_plan(graph, bits(2, 4, overrides={pattern: LayerBits(**override)}))
    assert f"'{pattern}'" in str(caught.value) and near in str(caught.value)


def test_quantizer_names_and_settings_come_from_the_config(graph):
    config = QuantConfig(
        w_qconfig=WeightQConfig("FixedFakeQuantize", "MinMaxObserver", symmetric=True),
        a_qconfig=ActivationQConfig("LSQPlusFakeQuantize", "AvgMSEFastObserver"),
        recon=None,
    )
    settings = {(str(s.kind), s.quantizer, s.observer, s.symmetric) for s in make_plan(graph, config).quantizers}
    assert settings == {
        ("weight", "FixedFakeQuantize", "MinMaxObserver", True),
        ("activation", "LSQPlusFakeQuantize", "AvgMSEFastObserver", False),
    }


# ---- plain data ----


@pytest.mark.parametrize("name", NETWORKS)
def test_survives_json(name):
    plan = planned(network(name))[1]
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.quantizers[0].kind is plan.quantizers[0].kind


def test_is_the_same_every_time():
    assert planned(network("squeeze", 0))[1] == planned(network("squeeze", 1), example=images(1))[1]


def test_reads_well():
    lines = str(planned(filled(UNet()))[1]).splitlines()
    assert len(lines) == 1 + 4 + 11 + 1
    assert [lines[0].split()[i] for i in (0, -1)] == ["unit", "shape"]
    assert lines[1].split() == ["stem.0", "layer", "1w", "1a"]
    assert lines[2].split() == ["stem.0.weight_quantizer", "weight", "8", "6x3x3x3"]
    assert lines[4].split() == ["encoder", "block", "2w", "2a"]
    assert lines[-1] == "87.6% of multiply-accumulates have both operands quantized"  # all but the stem's
    assert max(len(line) for line in lines) < 100


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("residual", ["x", "body.0.conv2", "body.1.conv2", "mean"]),
        ("concat", ["x", "mean"]),
        ("squeeze", ["x", "body.0.mean", "body.0.up", "mean"]),
        ("fork", ["x", "body.0.conv2.0", "mean"]),
        ("chain", ["x", "body.0.a.0", "body.0.b.0", "body.0.add", "mean"]),
        ("unet", ["x", "encoder.conv2"]),
    ],
)
def test_integer_placement_also_quantizes_the_image_branches_and_averages(name, expected):
    """All in 8 bits, beside the published ones as they are; the network's output never is."""
    _, published = planned(network(name))
    _, plan = planned(network(name), bits(2, 4, placement="integer"))
    added = [spec for spec in plan.quantizers if spec not in published.quantizers]
    assert [(spec.layer, spec.bit) for spec in added] == [(name, 8) for name in expected]
    assert [spec for spec in plan.quantizers if spec not in added] == list(published.quantizers)
    assert [unit.module for unit in plan.units] == [unit.module for unit in published.units]


@pytest.mark.parametrize("name", NETWORKS)
def test_integer_placement_leaves_no_product_in_float(name):
    assert planned(network(name))[1].quantized_macs < 1
    assert planned(network(name), bits(2, 4, placement="integer"))[1].quantized_macs == 1


@pytest.mark.parametrize("placement", ["published", "integer"])
def test_without_activation_quantizers_weights_alone_are_quantized(placement):
    _, plan = planned(network("residual"), bits(2, None, placement=placement))
    assert {spec.kind for spec in plan.quantizers} == {"weight"} and plan.quantized_macs == 0
