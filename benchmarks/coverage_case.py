"""One network of the coverage benchmark: planned, quantized, compared with a naive reference, saved, exported.

The reference knows nothing of graphs: forward hooks on the module's own convolutions and linear layers round what these
read, and their weights are rounded in place, both in 8 bits from the smallest to the largest value.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import qdrop
from qdrop import pipeline
from qdrop.config import ActivationQConfig, QuantConfig, WeightQConfig
from qdrop.errors import first_line
from qdrop.graph.inputs import arguments

IMAGES = 8
"""To find ranges on; as many others are compared."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
W8A8 = QuantConfig(
    w_qconfig=WeightQConfig("FixedFakeQuantize", "MinMaxObserver", 8),
    a_qconfig=ActivationQConfig("FixedFakeQuantize", "MinMaxObserver", 8),
    recon=None,
    calibrate=IMAGES,
    calibrate_range=IMAGES,
)


@dataclass
class Case:
    """What became of a network; a text where something failed says why."""

    name: str
    """`timm:NAME` or `torchvision:NAME`."""
    parameters: int = 0
    size: int = 0
    """Height and width of the images."""
    planned: str = "not tried"
    """"" if it was."""
    share: float = 0.0
    """Of the multiply-accumulates, 0 to 1, that have both operands quantized, as published."""
    integer: float = 0.0
    """The same with `placement: integer`."""
    cosine: float = 0.0
    """Cosine of the W8A8 outputs with those in full precision."""
    naive: float = 0.0
    """The same of the reference."""
    loaded: str = "not tried"
    """"" if saved and loaded with the same outputs, bit for bit."""
    onnx: str = "not tried"
    """"" if ONNX Runtime computes the same."""
    onnx_difference: float = 0.0
    """Largest difference of ONNX Runtime's outputs from PyTorch's, relative to the largest of these."""
    own: float = 0.0
    """The same of PyTorch from itself, where it adds in another order or the images change by a millionth."""


def prepare() -> None:
    """Set up a process for cases: one thread, and no words but of the case."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def examine(name: str, folder: Path) -> Case:
    """Take a network through everything.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.
        folder: Where files are written.
    """
    torch.manual_seed(0)
    case = Case(name)
    try:
        model, case.size = sane(name)
        case.parameters = sum(p.numel() for p in model.parameters())
        images, others = torch.randn(2, IMAGES, 3, case.size, case.size).unbind()
        graph = qdrop.capture(model, images)  # once: it is most of the time
        case.share = qdrop.make_plan(graph, W8A8).quantized_macs
        case.integer = qdrop.make_plan(graph, replace(W8A8, placement="integer")).quantized_macs
        quantized = quantize(graph, images)
        case.planned = ""
    except Exception as error:  # whatever a foreign network raises
        case.planned = reason(error)
        return case
    full = outputs(model, others)
    case.cosine = cosine(full, outputs(quantized, others))
    with naively_quantized(model, images) as reference:
        case.naive = cosine(full, outputs(reference, others))
    case.loaded = reload(quantized, others, folder / "network.safetensors")
    case.onnx, case.onnx_difference = run_onnx(quantized, others[:3], folder / "network.onnx")
    case.own = own_difference(quantized, others[:3])
    return case


def sane(name: str) -> tuple[nn.Module, int]:
    """A network with random weights whose batch norms have the statistics of random images; the images' size.

    That is 96 pixels, or what the network takes.
    """
    library, _, short = name.partition(":")
    if library == "timm":
        import timm

        model: Any = timm.create_model(short)
        usual = model.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
    else:
        import torchvision

        model, usual = torchvision.models.get_model(short, weights=None), 224
    for size in (96, usual):
        try:
            settle(model, torch.randn(IMAGES, 3, size, size))
            return model.eval(), size
        except Exception:  # the next size, or the network's own words
            if size == usual:
                raise
    raise AssertionError


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Give layers that start at zero random weights, and batch norms the statistics of images `[N, C, H, W]`."""
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():  # as the heads of some networks, whose outputs would all be 0
            weight.normal_(std=0.02)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    model(images)
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    model(images)
    model.eval()


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """The first tensor that a network gives, as rows `[N, ...]`."""
    found = next(v for v in pytree.tree_leaves(model(images)) if isinstance(v, Tensor))
    return found.flatten(1)


def cosine(full: Tensor, found: Tensor) -> float:
    """Cosine of the angle between outputs, each less its mean over images, averaged over images."""
    return float(F.cosine_similarity(full - full.mean(0), found - full.mean(0)).mean())


def quantize(graph: fx.GraphModule, images: Tensor) -> fx.GraphModule:
    """What `qdrop.quantize` makes of a network at W8A8, from its graph."""
    cpu = torch.device("cpu")
    with pipeline.arithmetic():
        network = pipeline.insert(graph, pipeline.make_plan(graph, W8A8), cpu)
        pipeline.calibrate(network, arguments(network, images), W8A8, cpu)
    return pipeline.freeze(network)


def rounded(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """`x` in 255 steps from `lo` to `hi`, zero among them."""
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = ((hi - lo) / 255).clamp(min=1e-8)
    zero = torch.round(-lo / scale)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


@contextmanager
def naively_quantized(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """The reference: a copy of `model` with 8-bit weights, whose layers read 8-bit values."""
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, LAYERS)]
    ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def watch(layer: nn.Module, given: Any) -> None:
        lo, hi = given[0].min(), given[0].max()
        before = ranges.get(layer, (lo, hi))
        ranges[layer] = torch.minimum(lo, before[0]), torch.maximum(hi, before[1])

    def quantize(layer: nn.Module, given: Any) -> Any:
        return (rounded(given[0], *ranges[layer]), *given[1:])

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    outputs(model, images)
    for hook in hooks:
        hook.remove()
    first = layers[0]
    for layer in layers:
        if layer in ranges and layer is not first:  # the image stays as it is
            layer.register_forward_pre_hook(quantize)
        weight = layer.get_parameter("weight").data
        axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        rows = weight.transpose(0, axis).flatten(1)
        shape = [1] * weight.ndim
        shape[axis] = -1
        layer.get_parameter("weight").data = rounded(weight, rows.amin(1).view(shape), rows.amax(1).view(shape))
    yield model


def reload(quantized: fx.GraphModule, images: Tensor, path: Path) -> str:
    """Save and load a network; why it failed, or ""."""
    try:
        qdrop.save(quantized, path)
        same = torch.equal(outputs(qdrop.load(path), images), outputs(quantized, images))
    except Exception as error:
        return reason(error)
    return "" if same else "other outputs"


def run_onnx(quantized: fx.GraphModule, images: Tensor, path: Path) -> tuple[str, float]:
    """Export a network and run it; why it failed, or "", and the largest relative difference."""
    try:
        import onnxruntime

        from qdrop.export import Container, export_onnx

        export_onnx(quantized, images, path, Container.NATIVE)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]).flatten(1)
        largest = difference(found, outputs(quantized, images))
    except Exception as error:
        return reason(error), 0.0
    return "", largest


def own_difference(quantized: fx.GraphModule, images: Tensor) -> float:
    """How far PyTorch's outputs are from themselves where some values round to the other side.

    That is with other convolution kernels than oneDNN's, and for images `[N, C, H, W]` changed by a millionth: no
    other runtime can be nearer. A network with random weights can be so touchy that it is a tenth of the outputs.
    """
    wanted = outputs(quantized, images)
    with torch.backends.mkldnn.flags(enabled=False):
        found = [outputs(quantized, images)]
    found += [outputs(quantized, images * (1 + 1e-6 * torch.randn_like(images))) for _ in range(2)]
    return max(difference(one, wanted) for one in found)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of outputs `[N, ...]`, relative to the largest value wanted; 0 of outputs all 0."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def reason(error: Exception) -> str:
    """An error as a line."""
    return f"{type(error).__name__}: {first_line(error)}"[:240]
