"""Any network of torchvision and timm is planned and quantized.

A quick choice of architectures, each for one thing that is hard in it, and the rest of the list as `slow`.
"""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, fx, nn

from qdrop.checkpoint import describe
from qdrop.config import ActivationQConfig, QuantConfig, WeightQConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph, quantized_weights
from qdrop.graph.ops import Role, multiplied
from qdrop.graph.placement import Wiring
from qdrop.graph.plan import Plan, make_plan
from qdrop.graph.scopes import calibrating
from qdrop.graph.split import segments
from qdrop.graph.units.blocks import LARGEST_SHARE
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizing

QUICK = [
    "torchvision/squeezenet1_1",  # concatenation, no linear layer
    "torchvision/mobilenet_v3_small",  # hard swish, squeeze and excite
    "torchvision/shufflenet_v2_x1_0",  # chunk and shuffle
    "timm/resnet18d",  # deep stem, pooled shortcut
    "timm/resnest14d",  # a sum over splits, softmax
    "timm/convnextv2_atto",  # LayerNorm, global response norm
    "timm/edgenext_xx_small",  # attention, positions computed from the size
    "timm/vit_tiny_patch16_224",  # a second input that is not given, tokens
]
SLOW = [
    *(f"torchvision/{name}" for name in (
        "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2",
        "mobilenet_v3_large", "mnasnet1_0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf",
        "inception_v3", "convnext_tiny",
    )),
    *(f"timm/{name}" for name in (
        "resnet18", "resnet26t", "seresnet50", "mobilenetv2_100", "mobilenetv4_conv_small",
        "efficientnet_lite0", "efficientnet_b0", "regnetx_002", "dla34", "vovnet39a", "ghostnet_100",
        "convnext_atto", "nfnet_f0", "darknet53", "deit_tiny_patch16_224", "rexnet_100",
    )),
]  # fmt: skip
SLOW += [
    "torchvision/alexnet",  # no BN, dropout
    "torchvision/efficientnet_b0",  # SiLU, stochastic depth
    "torchvision/googlenet",  # inception blocks, the image normalised inside
    "timm/ecaresnet50t",  # Conv1d over the channels
    "timm/mobilenetv3_small_100",  # a Linear with a forward of its own
    "timm/mixnet_s",  # one BN over several convolutions
    "timm/regnety_002",  # grouped convolutions
    "timm/hrnet_w18_small",  # modules that take and give several tensors
    "torchvision/densenet121",  # BN before its convolution
    "torchvision/vit_b_16",  # attention of torch's own
    "torchvision/swin_t",  # weights as arguments of a function
    "timm/tf_efficientnet_b0",  # padding computed from the size
    *("timm/repvgg_a0", "timm/mobileone_s0", "timm/fastvit_t8"),  # branches that are a BN alone
    "timm/resnetv2_50",  # BN behind pooling
]

FIXED_SIZE = {"vit_b_16": 224, "swin_t": 224, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224}
WITHOUT_AUXILIARY = {"googlenet", "inception_v3"}

CONFIG = QuantConfig(
    w_qconfig=WeightQConfig(quantizer="FixedFakeQuantize", observer="MinMaxObserver", bit=4),
    a_qconfig=ActivationQConfig(observer="MinMaxObserver"),
    recon=None,
)

PASSING = (Role.SHAPE, Role.SELECT, Role.MIX, Role.CLIP)
"""Roles behind which a quantized value is still one: it is moved, pooled, selected or clipped."""


def with_statistics(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, each BN with statistics and parameters of its own.

    The weights stay as the library draws them: with larger ones rounding errors explode in a deep network.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
            ):
                nn.init.uniform_(value, low, high)
    return model.eval()


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and two images that suit it."""
    torch.manual_seed(0)
    library, _, arch = name.partition("/")
    if library == "timm":
        model = timm.create_model(arch, num_classes=10)
    else:
        options = {"aux_logits": False, "init_weights": False} if arch in WITHOUT_AUXILIARY else {}
        model = torchvision.models.get_model(arch, weights=None, num_classes=10, **options)
    size = FIXED_SIZE.get(arch, 96)
    return with_statistics(model), torch.randn(2, 3, size, size)


def unquantized_sources(graph: fx.GraphModule, plan: Plan) -> list[str]:
    """What feeds a layer and is neither the image nor, behind what passes values on, quantized."""
    wiring, quantized = Wiring(graph), {spec.node for spec in plan.quantizers}
    found = []
    for layer in wiring.layers:
        waiting = [node for node in multiplied(layer) if node in wiring.activations]
        for node in waiting:
            if node.name in quantized or prepares_image(node, wiring):
                continue
            if wiring.roles[node] in PASSING:
                waiting.extend(n for n in node.all_input_nodes if n in wiring.activations and n not in waiting)
            else:
                found.append(f"{layer.name} reads {node.name}")
    return found


def prepares_image(node: fx.Node, wiring: Wiring) -> bool:
    """Whether a value is computed from the image without any product."""
    sources = [n for n in node.all_input_nodes if n in wiring.activations]
    return wiring.roles[node] is not Role.PRODUCT and all(prepares_image(n, wiring) for n in sources)


def run_segments(model: fx.GraphModule, plan: Plan, images: Tensor) -> Tensor:
    """The output of the segments run one after the other, each on what earlier ones wrote."""
    parts = segments(model, plan)
    values = {parts[0].inputs[0]: images}
    for part in parts:
        results = part.module(*(values[name] for name in part.inputs))
        for name, value in zip(part.outputs, results, strict=True):
            assert isinstance(value, Tensor)
            assert len(value) == len(images), f"{name} of {part.name} is not one value for each image"
            values[name] = value
    return values[parts[-1].outputs[-1]]


def check(model: nn.Module, images: Tensor) -> Plan:
    """Capture, plan, quantize, calibrate and run a network; everything that must hold for any."""
    with torch.no_grad():
        expected = model(images)
        graph = capture(model, images)
        plan = make_plan(graph, CONFIG)
        assert unquantized_sources(graph, plan) == []
        quantized = quantize_graph(graph, plan)
        torch.testing.assert_close(quantized(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        assert torch.equal(model(images), expected), "the model itself was changed"

    weights = sum(spec.kind is Kind.WEIGHT for spec in plan.quantizers)
    assert sum(unit.weights for unit in plan.units) == weights == len(quantized_weights(quantized))
    if weights > 40:
        assert max(unit.weights for unit in plan.units) <= LARGEST_SHARE * weights

    with calibrating(quantized):
        quantized(images)
    with torch.no_grad(), quantizing(quantized):
        whole = quantized(images)
        assert whole.isfinite().all()
        torch.testing.assert_close(run_segments(quantized, plan, images), whole)
        assert torch.equal(describe(quantized).build()(images), whole), "a saved network is another one"
    return plan


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_network_is_quantized(name):
    check(*build(name))


def test_activation_function_behind_an_idle_module_is_fused():
    """A timm BN holds an Identity between the normalisation and its activation function."""
    plan = check(*build("timm/efficientnet_lite0"))
    assert {str(spec.kind) for spec in plan.quantizers[:2]} == {"weight", "activation"}
    names = [spec.name for spec in plan.quantizers]
    assert len(names) == len(set(names))
    assert not [name for name in names if "act" in name]


def test_stage_that_holds_more_than_its_blocks_is_cut_into_them():
    plan = check(*build("timm/cspresnet50"))
    (note,) = plan.notes
    assert note == "block 'stages.2' holds 19 of 56 layers: its blocks and layers are reconstructed one by one"
    blocks = [u.module for u in plan.units if u.kind == "block" and u.module.startswith("stages.2.")]
    assert blocks == [f"stages.2.blocks.{i}" for i in range(len(blocks))]


def test_backbone_inside_a_model_is_cut_into_its_blocks():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torchvision.models.resnet18()
            self.head = nn.Linear(1000, 3)
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

        def forward(self, x):
            return self.head(self.backbone((x - self.mean) / 0.2))

    plan = check(with_statistics(Model()), torch.randn(2, 3, 64, 64))
    alone = make_plan(capture(with_statistics(torchvision.models.resnet18()), torch.randn(2, 3, 64, 64)), CONFIG)
    units = [unit.module.removeprefix("backbone.") for unit in plan.units]
    assert units == [*(unit.module for unit in alone.units), "head"]
