"""The networks against the published layouts, golden logits, golden order of execution, and real weights."""

import pytest
import torch
from golden import GOLDEN_DETECTORS, GOLDEN_MODELS, fill_by_rule, golden_images, load_fixture
from real_data import real_folder
from torch import fx, nn

from qdrop.models import BUILDERS, build_model
from qdrop.models.cifar_resnet import CifarBlock

golden = pytest.mark.parametrize("fixture_name, model_type", GOLDEN_MODELS.items())


@golden
def test_state_dict_is_the_published_layout(fixture_name, model_type):
    state = BUILDERS[model_type]().state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == load_fixture("checkpoint_layouts")[
        fixture_name
    ]


@golden
def test_forward_equals_the_golden_logits(fixture_name, model_type):
    expected = load_fixture("fp_outputs")[fixture_name]
    model = fill_by_rule(BUILDERS[model_type]())
    with torch.inference_mode():
        logits = model(golden_images(2, 224))  # [2, 1000]
    first8 = torch.tensor(expected["first8"])
    assert (logits[0, :8] - first8).norm() / first8.norm() < 1e-4
    assert logits.std().item() == pytest.approx(expected["std"], rel=1e-4)
    assert logits.mean().item() == pytest.approx(expected["mean"], abs=1e-4 * expected["std"])
    assert logits[1].argmax().item() == expected["row1_argmax"]


@golden
def test_weights_execute_in_the_golden_order(fixture_name, model_type):
    graph_module = fx.symbolic_trace(BUILDERS[model_type]())
    called = [graph_module.get_submodule(n.target) for n in graph_module.graph.nodes if n.op == "call_module"]
    shapes = [list(layer.weight.shape) for layer in called if isinstance(layer, nn.Conv2d | nn.Linear)]
    quantizers = load_fixture("quantizer_plans")[fixture_name]["quantizers_in_execution_order"]
    assert shapes == [q["shape"] for q in quantizers if q["kind"] == "weight"]


@pytest.mark.parametrize(
    "model_type, image, classes",
    [("resnet20", (3, 32, 32), 10), ("resnet56", (3, 32, 32), 10), ("digits_resnet", (1, 8, 8), 10)],
)
def test_small_networks_trace_to_the_same_function(model_type, image, classes):
    model = build_model(model_type)
    x = torch.rand(2, *image)
    with torch.inference_mode():
        logits = model(x)
        assert logits.shape == (2, classes)
        assert torch.equal(fx.symbolic_trace(model)(x), logits)


@pytest.mark.parametrize("model_type, layers", [(f"resnet{depth}", depth) for depth in (20, 32, 44, 56, 110)])
def test_cifar_networks_have_the_layers_of_their_name(model_type, layers):
    weighted = [m for m in BUILDERS[model_type]().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers


def test_shortcut_of_option_a_takes_every_second_pixel_and_pads_evenly():
    block = CifarBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # silences the residual branch; its bias is zero already
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, [0, 3]].count_nonzero() == 0


@pytest.mark.parametrize("model_type", sorted(set(BUILDERS) - set(GOLDEN_DETECTORS.values())))
def test_num_classes_sets_the_length_of_the_output(model_type):
    last = list(BUILDERS[model_type](num_classes=7).parameters())[-1]
    assert last.shape == (7,)


def test_width_of_the_digits_network():
    assert BUILDERS["digits_resnet"](width=4).fc.in_features == 16


@pytest.mark.data
@pytest.mark.parametrize(
    "model_type, file, size",
    [
        ("resnet20", "cifar10/weights/resnet20.safetensors", 32),
        ("resnet56", "cifar10/weights/resnet56.safetensors", 32),
        ("mobilenetv2", "imagenet/weights/mobilenetv2.safetensors", 64),
        ("resnet50", "imagenet/weights/resnet50.safetensors", 64),
    ],
)
def test_real_weights_load(model_type, file, size):
    path = real_folder() / file
    random_last = list(build_model(model_type).parameters())[-1]
    model = build_model(model_type, path=str(path))
    assert not torch.equal(list(model.parameters())[-1], random_last)
    with torch.inference_mode():
        assert model(golden_images(2, size)).isfinite().all()
