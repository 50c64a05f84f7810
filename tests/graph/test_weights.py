import pytest
import torch
from networks import weight_spec
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qdrop.quantization.fake_quant import build_quantizer
from qdrop.quantization.quantized_module import QUANTIZED, float_type

LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 8, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding="same", padding_mode="reflect"), (2, 4, 8, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
    "linear": (nn.Linear(4, 6), (2, 5, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), (2, 4)),
}


def twin(layer, quantizer="AdaRoundFakeQuantize", bit=2):
    spec = weight_spec(tuple(layer.weight.shape), bit, quantizer)
    return QUANTIZED[float_type(layer)].from_float(layer, build_quantizer(spec))


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_switched_off_it_is_the_float_layer(layer, shape):
    x = torch.randn(shape)
    assert torch.equal(twin(layer)(x), layer(x))


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("quantizer", ["AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQFakeQuantize"])
def test_computes_with_the_rounded_weight(layer, shape, quantizer):
    x, quantized = torch.randn(shape), twin(layer, quantizer)
    quantized.calibrate_weight()
    quantized.weight_quantizer.active = True
    weight, grid = quantized.quantized_weight(), quantized.weight_quantizer
    scale, zero_point = grid.scale.detach(), grid.zero_point.int()
    nearest = torch.fake_quantize_per_channel_affine(layer.weight, scale, zero_point, 0, 0, 3)
    torch.testing.assert_close(weight, nearest)
    assert all(1 < len(row.unique()) <= 4 for row in weight)
    kept = layer.weight.data
    try:
        layer.weight.data = weight.detach()
        expected = layer(x)
    finally:
        layer.weight.data = kept
    assert torch.equal(quantized(x), expected)


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_shares_parameters_and_changes_nothing(layer, shape):
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    quantized = twin(layer)
    assert quantized.weight is layer.weight and quantized.bias is layer.bias
    quantized.calibrate_weight()
    quantized.settle()
    assert not hasattr(layer, "weight_quantizer")
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_settings_are_the_layers_own():
    layer = LAYERS["dilated"][0]
    assert twin(layer).extra_repr() == layer.extra_repr()


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_float_type(layer, shape):
    assert isinstance(layer, float_type(layer))
    assert float_type(twin(layer)) is None  # not quantized twice


def test_float_type_looks_at_the_computation():
    class Renamed(nn.Conv2d):
        pass

    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    assert float_type(Renamed(1, 1, 1)) is nn.Conv2d
    assert float_type(Standardized(1, 1, 1)) is None
    assert float_type(nn.ReLU()) is None
    assert float_type(nn.ConvTranspose2d(1, 1, 1)) is None


def test_settle_of_a_fixed_rounding():
    quantized = twin(LAYERS["linear"][0], "FixedFakeQuantize")
    quantized.calibrate_weight()
    assert quantized.settle() == 0


class Strides(TorchDispatchMode):
    """Notes the strides of the convolutions inside."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.found.append(tuple(args[3]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("channels", "stride"), [(4, (1, 1)), (8, (2, 2))])
def test_skipping_pixels_of_few_channels(channels, stride):
    """With a gradient oneDNN is not asked to skip them, and the gradients are those of the layer as it is."""
    layer = nn.Conv2d(channels, 6, 1, stride=2)
    quantized, x = twin(layer), torch.randn(3, channels, 7, 7)
    seen, shown = x.clone().requires_grad_(), x.clone().requires_grad_()
    with Strides() as strides:
        ours = quantized(seen)
    assert strides.found == [stride]
    theirs = layer(shown)
    torch.testing.assert_close(ours, theirs)
    by = torch.randn(ours.shape)
    gradients = [torch.autograd.grad(y, (z, layer.weight), by) for y, z in ((ours, seen), (theirs, shown))]
    torch.testing.assert_close(*gradients)
    layer.requires_grad_(False)
    with Strides() as strides:
        assert torch.equal(quantized(x), layer(x))
    assert strides.found == [(2, 2)] * 2
