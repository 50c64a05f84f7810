"""Small networks for tests: each block has one thing that makes capturing, planning or cutting hard."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from captured_once import captured_once
from torch import Tensor, fx, nn

from qdrop.config import ActivationQConfig, QuantConfig, WeightQConfig
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import Plan, make_plan
from qdrop.graph.scopes import calibrating
from qdrop.quantization.spec import Kind, QuantizerSpec

WIDTH = 6


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **kwargs) -> nn.Sequential:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Network(nn.Module):
    """Stem, blocks, pooling, classifier."""

    def __init__(self, *blocks: nn.Module, width: int = WIDTH, out: int | None = None):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, width), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(out or width, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    """In-place everything: `F.relu(inplace=True)`, `+=`, `relu_`."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, width)
        self.conv2, self.bn2 = conv_bn(width, width)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x
        return out.relu_()


class Concat(nn.Module):
    """Two branches side by side."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.a, self.b = conv_bn(width, width), conv_bn(width, width, 1)

    def forward(self, x):
        return torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)


class SqueezeExcite(nn.Module):
    """A product of an activation and a gate computed from it."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv = conv_bn(width, width)
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        out = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(out.mean((2, 3), keepdim=True)))))
        return out * gate


class Fork(nn.Module):
    """A convolution read by an add and by another convolution."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, width), conv_bn(width, width)

    def forward(self, x):
        y = self.conv1(x)
        return y + self.conv2(y)


class AddChain(nn.Module):
    """A sum of three: only the last sum is a new activation."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.a, self.b = conv_bn(width, width), conv_bn(width, width, 1)

    def forward(self, x):
        return F.relu(self.a(x) + self.b(x) + x)


class PreActivation(nn.Module):
    """A ReLU opens the block; what is added is the sum before it."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, width), conv_bn(width, width)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Decode(nn.Module):
    """Takes two tensors."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(2 * width, width), conv_bn(width, width)

    def forward(self, x, skip):
        x = F.relu(self.conv1(torch.cat([F.interpolate(x, scale_factor=2), skip], 1)))
        return F.relu(self.conv2(x))


class UNet(nn.Module):
    """One level down and up again: the decoder reads two values."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, width), nn.ReLU())
        self.encoder = Residual(width)
        self.decoder = Decode(width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        skip = self.stem(x)
        return self.head(self.decoder(self.encoder(F.max_pool2d(skip, 2)), skip))


def windows(x: Tensor) -> Tensor:
    """Windows of 4x4 as rows of their own: `[N, C, H, W]` to `[N * H/4 * W/4, 16, C]`."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)


def unfolded(rows: Tensor, shape: torch.Size) -> Tensor:
    """What :func:`windows` made of images of 8x8, as images of that `shape` again."""
    return rows.reshape(-1, 2, 2, 4, 4, shape[1]).permute(0, 5, 1, 3, 2, 4).reshape(shape)


class Windowed(nn.Module):
    """Layers that see four windows of an image as four rows, as in Swin transformers."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + unfolded(self.down(F.relu(self.up(windows(x)))), x.shape)


class OpenWindows(nn.Module):
    """The same outside any block."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, width, 1), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x):
        rows = F.relu(self.inner(windows(F.relu(self.stem(x)))))
        return self.head(rows.reshape(-1, 64, rows.shape[-1]).mean(1))


class OpenStage(nn.Module):
    """A layer on windows, and blocks behind it."""

    def __init__(self, *blocks: nn.Module, width: int = WIDTH):
        super().__init__()
        self.blocks, self.inner = nn.Sequential(*blocks), nn.Linear(width, width)

    def forward(self, x):
        return self.blocks(x + unfolded(F.relu(self.inner(windows(x))), x.shape))


class FoldedActivation(nn.Module):
    """A layer's output is folded into rows of their own before its activation function."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(F.gelu(self.stem(x).reshape(-1, 16, WIDTH)).reshape(-1, 64, WIDTH).mean(1))


class Wrapper(nn.Module):
    """A whole network inside a class that does work of its own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x * 2 - 1)


class Sequence1d(nn.Module):
    """Conv1d and Linear, both with BatchNorm1d."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1 = nn.Conv1d(3, 4, 3, groups=1), nn.BatchNorm1d(4)
        self.hidden, self.bn2 = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv(x))).mean(2)
        return self.head(F.relu(self.bn2(self.hidden(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Network(Residual(), Residual()),
    "concat": lambda: Network(Concat(), out=2 * WIDTH),
    "squeeze": lambda: Network(SqueezeExcite()),
    "fork": lambda: Network(Fork()),
    "chain": lambda: Network(AddChain()),
    "preactivation": lambda: Network(PreActivation(), PreActivation()),
    "unet": UNet,
    "wrapper": lambda: Wrapper(Network(Residual())),
}
"""Networks that take `images(...)`."""


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in evaluation mode with random weights and BN statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim >= 2:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


def network(name: str, seed: int = 0) -> nn.Module:
    return filled(NETWORKS[name](), seed)


def images(count: int = 8, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def bits(weights: int = 2, activations: int | None = 4, **kwargs) -> QuantConfig:
    """A config by its bits; None: activations are not quantized. Nothing is learned unless `recon` says so."""
    a_qconfig = None if activations is None else ActivationQConfig(bit=activations)
    return QuantConfig(w_qconfig=WeightQConfig(bit=weights), a_qconfig=a_qconfig, **({"recon": None} | kwargs))


def planned(model: nn.Module, config: QuantConfig | None = None, granularity: str = "block", example=None):
    graph = captured_once(model, images(2) if example is None else example)
    return graph, make_plan(graph, config or bits(), granularity)


def quantized(
    model: nn.Module, config: QuantConfig | None = None, granularity: str = "block", calibrate: bool = True
) -> tuple[fx.GraphModule, Plan]:
    """A quantized graph, calibrated on `images()`, and its plan."""
    graph, plan = planned(model, config, granularity)
    quantize_graph(graph, plan)
    if calibrate:
        with calibrating(graph):
            graph(images())
    return graph, plan


def weight_spec(shape=(4, 3), bit=2, quantizer="AdaRoundFakeQuantize", symmetric=False, ch_axis=0, **kwargs):
    fields = {"name": "layer.weight_quantizer", "node": "layer", "observer": "MSEObserver"} | kwargs
    return QuantizerSpec(
        kind=Kind.WEIGHT,
        quantizer=quantizer,
        bit=bit,
        symmetric=symmetric,
        ch_axis=ch_axis,
        shape=shape,
        **fields,
    )


def activation_spec(shape=(3, 8, 8), bit=4, quantizer="LSQFakeQuantize", symmetric=False, ch_axis=-1, **kwargs):
    fields = {"name": "layer.output_quantizer", "node": "layer", "observer": "MSEObserver"} | kwargs
    return QuantizerSpec(
        kind=Kind.ACTIVATION,
        quantizer=quantizer,
        bit=bit,
        symmetric=symmetric,
        ch_axis=ch_axis,
        shape=shape,
        **fields,
    )
