"""Any network of torchvision and timm is planned and quantized, or refused with the module and the reason.

A quick choice of architectures, each for one thing that is hard in it, and the rest of the list as `slow`.
"""

import pytest
import timm
import torch
import torchvision
from qdrop.quantization.ops import activations, module_of, operation
from timm.utils import reparameterize_model
from torch import Tensor, fx, nn

from qdrop.checkpoint import describe
from qdrop.config import ActivationQConfig, QuantConfig, WeightQConfig
from qdrop.graph.insert import quantize_graph
from qdrop.graph.ops import GraphError
from qdrop.graph.plan import Plan, make_plan
from qdrop.graph.split import segments
from qdrop.graph.units import LARGEST_SHARE
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import calibrating, quantized_modules, quantizing

QUICK = [
    "torchvision/alexnet",  # no BN, dropout
    "torchvision/squeezenet1_1",  # concatenation, no linear layer
    "torchvision/mobilenet_v3_small",  # hard swish, squeeze and excite
    "torchvision/efficientnet_b0",  # SiLU, stochastic depth
    "torchvision/shufflenet_v2_x1_0",  # chunk and shuffle
    "torchvision/googlenet",  # inception blocks, the image normalised inside
    "timm/resnet18d",  # deep stem, pooled shortcut
    "timm/ecaresnet50t",  # Conv1d over the channels
    "timm/mobilenetv3_small_100",  # a Linear with a forward of its own
    "timm/mixnet_s",  # one BN over several convolutions
    "timm/regnety_002",  # grouped convolutions
    "timm/resnest14d",  # a sum over splits, softmax
    "timm/hrnet_w18_small",  # modules that take and give several tensors
    "timm/cspresnet50",  # a stage that is more than its blocks
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
NOT_A_LAYER = "not a convolution or linear layer"
REFUSED = {
    "torchvision/densenet121": "cannot fold 'features.denseblock1.denselayer1.norm1' (BatchNorm2d): it"
    f" follows cat in 'features.denseblock1.denselayer1', {NOT_A_LAYER}",
    "torchvision/vit_b_16": "'encoder.layers.encoder_layer_0.self_attention' (MultiheadAttention) holds a"
    " weight but is none of Conv2d, Conv1d, Linear; it cannot be quantized yet",
    "torchvision/swin_t": "shifted_window_attention in 'features.1.0.attn' takes a weight as an argument;"
    " only layer modules are quantized",
    "timm/tf_efficientnet_b0": "cannot trace module 'conv_stem' (Conv2dSame): symbolically traced variables"
    " cannot be used as inputs to control flow",
    "timm/repvgg_a0": "cannot fold batch_norm_4 in 'stages.0.1.identity': it follows"
    f" 'stages.0.0.act' (ReLU), {NOT_A_LAYER}",
    "timm/fastvit_t8": f"cannot fold 'stem.2.identity' (BatchNorm2d): it follows 'stem.1.act' (GELU), {NOT_A_LAYER}",
    "timm/mobileone_s0": "cannot fold batch_norm_7 in 'stages.0.1.identity': it follows"
    f" 'stages.0.0.act' (ReLU), {NOT_A_LAYER}",
    "timm/resnetv2_50": "cannot fold batch_norm in 'stages.0.blocks.0.norm1': it follows"
    f" 'stem.pool' (MaxPool2d), {NOT_A_LAYER}",
}
REPARAMETERIZED = ["timm/repvgg_a0", "timm/mobileone_s0", "timm/fastvit_t8"]

FIXED_SIZE = {"vit_b_16": 224, "swin_t": 224, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224}
WITHOUT_AUXILIARY = {"googlenet", "inception_v3"}

CONFIG = QuantConfig(
    w_qconfig=WeightQConfig(quantizer="FixedFakeQuantize", observer="MinMaxObserver", bit=4),
    a_qconfig=ActivationQConfig(observer="MinMaxObserver"),
    recon=None,
)

# Modules and functions behind which a quantized value is still one: it is moved, pooled, selected or clipped.
PASSING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Flatten, nn.Upsample,
)  # fmt: skip
PASSING_FUNCTIONS = {
    "relu", "clamp", "getitem", "chunk", "split", "unbind", "cat", "flatten", "reshape", "view", "permute",
    "transpose", "contiguous", "expand", "squeeze", "unsqueeze", "roll", "pad", "mean", "avg_pool2d",
    "adaptive_avg_pool2d", "max_pool2d", "interpolate",
}  # fmt: skip


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


def unquantized_sources(model: fx.GraphModule) -> list[str]:
    """What feeds a layer and is neither the image nor, behind what passes values on, a quantizer."""
    values = activations(model.graph)
    found = []
    for layer in model.graph.nodes:
        if module_of(layer) not in quantized_modules(model):
            continue
        waiting = [layer.args[0]]
        for node in waiting:
            module = module_of(node)
            if node.op == "placeholder" or isinstance(module, FakeQuantize):
                continue
            if isinstance(module, PASSING_MODULES) or operation(node) in PASSING_FUNCTIONS:
                waiting.extend(n for n in node.all_input_nodes if n in values and n not in waiting)
            elif not prepares_image(node, values):
                found.append(f"{layer.target} reads {node.name}")
    return found


def prepares_image(node: fx.Node, values: set[fx.Node]) -> bool:
    """Whether a value is computed from the image (or sizes) without any layer."""
    sources = [n for n in node.all_input_nodes if n in values]
    layer = module_of(node) is not None
    return node.op == "placeholder" or (not layer and all(prepares_image(n, values) for n in sources))


def run_segments(model: fx.GraphModule, plan: Plan, images: Tensor) -> Tensor:
    """The output of the segments run one after the other, each on what earlier ones wrote."""
    parts = segments(model, plan)
    values = {parts[0].inputs[0]: images}
    for part in parts:
        if part.unit is not None:
            assert len(part.inputs) == len(part.outputs) == 1, part.name
        result = part.module(*(values[name] for name in part.inputs))
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(part.outputs, results, strict=True):
            assert isinstance(value, Tensor)
            assert len(value) == len(images), f"{name} of {part.name} is not one value for each image"
            values[name] = value
    return values[parts[-1].outputs[0]]


def check(model: nn.Module, images: Tensor) -> Plan:
    """Trace, plan, quantize, calibrate and run a network; everything that must hold for any."""
    with torch.no_grad():
        expected = model(images)
        graph = trace(model, images)
        plan = make_plan(graph, CONFIG)
        quantized = quantize_graph(graph, plan)
        torch.testing.assert_close(quantized(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        assert torch.equal(model(images), expected), "the model itself was changed"

    assert unquantized_sources(quantized) == []
    layers = sum(spec.kind is Kind.WEIGHT for spec in plan.quantizers)
    assert sum(unit.weights for unit in plan.units) == layers == len(quantized_modules(quantized))
    if layers > 40:
        assert max(unit.weights for unit in plan.units) <= LARGEST_SHARE * layers

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


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in REPARAMETERIZED])
def test_network_with_bn_branches_is_quantized_once_these_are_merged(name):
    model, images = build(name)
    check(reparameterize_model(model).eval(), images)


@pytest.mark.parametrize("name", REFUSED)
def test_network_that_cannot_be_quantized_says_where_and_why(name):
    model, images = build(name)
    with pytest.raises(GraphError) as error:
        make_plan(trace(model, images), CONFIG)
    assert str(error.value) == REFUSED[name]


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
    alone = make_plan(trace(with_statistics(torchvision.models.resnet18()), torch.randn(2, 3, 64, 64)), CONFIG)
    units = [unit.module.removeprefix("backbone.") for unit in plan.units]
    assert units == [*(unit.module for unit in alone.units), "head"]
