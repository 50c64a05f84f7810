"""Networks, images and arguments that a notebook hands in, and that nothing good can come of."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import qdrop
from hostile.case import Case
from hostile.networks import CONFIG, SIZE, Network

LEARNING = 16 << 30
"""Bytes for what must work: torch maps more than it uses."""
ERRORS = (qdrop.QdropError, OSError, TypeError)


class FixedBatch(Network):
    """A forward that only takes as many images as its author had."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(self.count, 3, SIZE, SIZE))


def _images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _changed(name: str, value: float) -> nn.Module:
    model = Network()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


def _sparse() -> nn.Module:
    model = Network()
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())
    return model


def _inner(change: Callable[[nn.Module], object]) -> nn.Module:
    model = nn.Sequential(Network(), nn.Linear(5, 5))
    model[1] = change(model[1])
    return model


def networks(folder: Path) -> Iterator[Case]:
    """Networks that are no plain modules in float32, or that hold what is not finite."""
    example = _images(2)
    models: dict[str, Callable[[], object]] = {
        "a scripted network": lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())),
        "a traced network": lambda: torch.jit.trace(Network().eval(), example),
        "a scripted layer": lambda: _inner(torch.jit.script),
        "a compiled layer": lambda: _inner(torch.compile),
        "None": lambda: None,
        "a class": lambda: Network,
        "a state dict": lambda: Network().state_dict(),
        "a function": lambda: torch.relu,
        "a network in half precision": lambda: Network().half(),
        "a network in double precision": lambda: Network().double(),
        "a network on the meta device": lambda: Network().to("meta"),
        "a network without a shape": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()),
        "a sparse weight": _sparse,
        "nan in a weight": lambda: _changed("conv.weight", torch.nan),
        "inf in a weight": lambda: _changed("conv.weight", torch.inf),
        "-inf in a bias": lambda: _changed("conv.bias", -torch.inf),
        "a batch of 1": lambda: FixedBatch(1),
        "a batch of 2": lambda: FixedBatch(2),
        "a batch of 8": lambda: FixedBatch(8),
        "no layer": lambda: nn.ReLU(),
        "an empty network": lambda: nn.Sequential(),
        "another number of channels": lambda: nn.Conv2d(4, 4, 3),
    }
    named = {"nan in a weight": "conv.weight", "inf in a weight": "conv.weight", "-inf in a bias": "conv.bias"}
    for name, model in models.items():
        call = lambda model=model: qdrop.quantize(model(), _images(), CONFIG)  # noqa: E731
        yield Case(name, call, named.get(name, ""), errors=ERRORS)
    for name, wrap in {"compiled": torch.compile, "DataParallel": nn.DataParallel}.items():
        call = lambda wrap=wrap: qdrop.quantize(wrap(Network()), _images(), CONFIG)  # noqa: E731
        yield Case(f"a {name} network", call, must_refuse=False, errors=ERRORS, memory=LEARNING)


def arguments(folder: Path) -> Iterator[Case]:
    """Images, seeds, devices and settings."""
    images = _images()
    calibrations: dict[str, object] = {
        "sparse images": images.to_sparse(),
        "images on the meta device": images.to("meta"),
        "a list of sparse images": [images.to_sparse()],
        "a list of images on the meta device": [images.to("meta")],
        "quantized images": torch.quantize_per_tensor(images, 0.1, 0, torch.qint8),
        "nested images": torch.nested.nested_tensor([images[0], images[1]]),
        "complex images": images.to(torch.complex64),
        "integers": images.to(torch.uint8),
        "half precision": images.half(),
        "one image": images[0],
        "no image": images[:0],
        "images of no size": torch.empty(8, 3, 0, 0),
        "nan": torch.full_like(images, torch.nan),
        "1e39": images.double() * 1e300,
        "None": None,
        "a number": 3,
        "a text": "images",
        "an empty list": [],
        "a list of lists": [[[1.0]]],
        "a list of None": [None],
        "an empty tuple": [()],
        "two sizes": [images, torch.randn(2, 3, 9, 9)],
        "two devices": [images, images.to("meta")],
        "a dict": {"images": images},
    }
    for name, value in calibrations.items():
        call = lambda value=value: qdrop.quantize(Network(), value, CONFIG)  # noqa: E731
        yield Case(name, call, errors=ERRORS)
    for seed in ("a", 1.5, -1, 2**64, None, True, [], 10**5000, torch.tensor(3.5)):
        call = lambda seed=seed: qdrop.quantize(Network(), _images(), CONFIG, seed=seed)  # noqa: E731
        yield Case(f"a seed of type {type(seed).__name__}", call, "seed", errors=ERRORS)
    quantized, _ = qdrop.quantize(Network(), images, CONFIG)
    qdrop.save(quantized, folder / "good")
    for device in ("gpu", "cuda:99", "cuda:" + "9" * 50, "", "meta:x", 3.5, "cpu:-1", "tpu", "a\0b", [], "x" * 5000):
        name = f"device {str(device)[:10]!r}"
        yield Case(
            f"{name}, load", lambda device=device: qdrop.load(folder / "good", device=device), "device", errors=ERRORS
        )
        call = lambda device=device: qdrop.quantize(Network(), _images(), CONFIG, device=device)  # noqa: E731
        yield Case(f"{name}, quantize", call, "device", errors=ERRORS)
    for config in (3, "w4a4", [], {1: 2}, {"bit": 4}, {"w_qconfig": {"bit": 99}}, {"quant": {}}, {b"w": 1}):
        call = lambda config=config: qdrop.quantize(Network(), _images(), config)  # noqa: E731
        yield Case(f"config {config!r}", call, errors=ERRORS)


def surroundings(folder: Path) -> Iterator[Case]:
    """Where a notebook calls from, and what it does with the outcome: both must work."""
    images = _images()
    recon = CONFIG | {"recon": {"iters": 2, "batch_size": 4}}
    plain, _ = qdrop.quantize(Network(), images, CONFIG | {"recon": None}, seed=0)

    def same(scope: Callable[[], object], config: dict[str, object]) -> None:
        torch.manual_seed(0)
        model = Network()
        expected, _ = qdrop.quantize(model, images, config)
        with scope():
            found, _ = qdrop.quantize(model, images, config)
        assert torch.equal(expected(images), found(images)), "another network came out"

    for dtype in (torch.bfloat16, torch.float16):
        for name, config in {"round to nearest": CONFIG, "reconstruction": recon}.items():
            scope = lambda dtype=dtype: torch.autocast("cpu", dtype)  # noqa: E731
            call = lambda scope=scope, config=config: same(scope, config)  # noqa: E731
            yield Case(f"{name} within autocast to {dtype}", call, must_refuse=False, memory=LEARNING)
    for name, scope in {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.items():
        yield Case(f"within {name}", lambda scope=scope: same(scope, recon), must_refuse=False, memory=LEARNING)

    def no_images() -> None:
        with torch.enable_grad():
            result = plain(images[:0].requires_grad_())
        assert result.shape == (0, 5)

    def no_images_to_learn_from() -> None:
        network, _ = qdrop.quantize(Network(), images, CONFIG)
        network.requires_grad_(True)
        network(images[:0]).sum().backward()

    yield Case("no images into a quantized network", no_images, must_refuse=False, memory=LEARNING)
    yield Case("no images into one that learns", no_images_to_learn_from, must_refuse=False, memory=LEARNING)
