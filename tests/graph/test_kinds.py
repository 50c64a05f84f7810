"""Networks of every kind: captured, planned, quantized, saved and loaded, a small one for each.

Each is compared with the module itself in batches of 1, 2 and 5, and what a file gives back with what was saved.
"""

import pytest
import torch
import torch.nn.functional as F
from captured_once import captured_once
from networks import filled, images
from torch import fx, nn
from torch.utils import _pytree as pytree

import qdrop
from qdrop import pipeline
from qdrop.config import ActivationQConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.graph.inputs import arguments
from qdrop.quantization.spec import Kind

CPU = torch.device("cpu")
WIDTH = 4


class TwoInputsTwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(3, WIDTH, 3, padding=1)
        self.left, self.right = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 3)

    def forward(self, x, y):
        x, y = F.relu(self.a(x)), F.relu(self.b(y))
        both = (x + y).mean((2, 3))
        return self.left(both), self.right(both * 2)


class Nested(nn.Module):
    """Results of results: a dict of a list of a tuple."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.inner(x))
        return {"maps": [x, (y, x.mean((2, 3)))], "classes": self.head(y.mean((2, 3)))}


class Repeated(nn.Module):
    """A layer that is called twice in a row."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.conv(F.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))


class RepeatedAcross(nn.Module):
    """A layer that is called again behind another one."""

    def __init__(self):
        super().__init__()
        self.conv, self.between, self.stem = (nn.Conv2d(n, WIDTH, 1) for n in (WIDTH, WIDTH, 3))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.between(F.relu(self.conv(F.relu(self.stem(x))))))))
        return self.head(x.mean((2, 3)))


class Crossed(nn.Module):
    """Two layers that are called in turns, each of them first somewhere."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.other = (nn.Conv2d(n, WIDTH, 1) for n in (3, WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        pairs = [(self.one, self.other), (self.other, self.one)] * 2
        found = [F.relu(second(F.relu(first(x * (number + 1))))) for number, (first, second) in enumerate(pairs)]
        return self.head(sum(found).mean((2, 3)))


class RepeatedInside(nn.Module):
    """A block that calls one of its layers twice."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)

        def forward(self, x):
            return x + self.conv(F.relu(self.other(F.relu(self.conv(x)))))

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, WIDTH, 1), self.Block(), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(F.relu(self.block(F.relu(self.stem(x)))).mean((2, 3)))


class RepeatedBlock(nn.Module):
    """A whole block that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, WIDTH, 1), RepeatedInside.Block(), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(F.relu(self.block(self.block(F.relu(self.stem(x))))).mean((2, 3)))


class Levels(nn.Module):
    """One head on several levels, as in RetinaNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.head = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 2, 1))

    def forward(self, x):
        fine = F.relu(self.stem(x))
        coarse = F.relu(self.down(fine))
        return [self.head(level) for level in (fine, coarse)]


class Tied(nn.Module):
    """Two layers that share a parameter."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.a(F.relu(self.stem(x)).mean((2, 3)))))


class TiedWords(nn.Module):
    """An embedding whose table is also the last layer."""

    def __init__(self):
        super().__init__()
        self.words, self.inner = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, numbers):
        return self.head(F.gelu(self.inner(self.words(numbers))))


class MaskedWords(nn.Module):
    """Integers that are computed with: places counted from what is not padding."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, WIDTH), nn.Embedding(8, WIDTH)
        self.inner, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, numbers):
        there = (numbers != 0).long()
        x = self.words(numbers) + self.places(torch.cumsum(there, 1) * there)
        return self.head((F.gelu(self.inner(x)) * there.unsqueeze(2)).sum(1))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.ConvTranspose2d(WIDTH, 6, 2, 2)
        self.bn, self.head = nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 2, 3, padding=1, groups=2)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.up(F.relu(self.down(x))))))


class NormFirst(nn.Module):
    """Batch norms before their convolutions, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.conv = nn.Conv2d(3, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        self.last, self.head = nn.BatchNorm2d(2 * WIDTH), nn.Linear(2 * WIDTH, 2)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        x = torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, WIDTH, 2, 2), nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(self.norm(tokens + mixed).mean(1))


class SequenceFirst(nn.Module):
    """Attention and a layer on tokens whose first axis is not the images'."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, WIDTH, 2, 2), nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.1)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.layer(self.stem(x).flatten(2).permute(2, 0, 1)).mean(0))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv3d(2, WIDTH, 3, padding=1), nn.BatchNorm3d(WIDTH)
        self.inner, self.head = nn.Conv3d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn(self.stem(x))), 2)
        return self.head(F.relu(self.inner(x)).mean((2, 3, 4)))


class Recurrent(nn.Module):
    """An LSTM between two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.lstm, self.head = nn.Linear(3, WIDTH), nn.LSTM(WIDTH, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        found, (last, _) = self.lstm(F.relu(self.stem(x)))
        return self.head(found.mean(1) + last[0])


class Gated(nn.Module):
    """The same with a GRU."""

    def __init__(self):
        super().__init__()
        self.stem, self.gru, self.head = nn.Linear(3, WIDTH), nn.GRU(WIDTH, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.gru(F.relu(self.stem(x)))[0].mean(1))


class WeightsAsArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.zeros(WIDTH, 3, 3, 3)), nn.Parameter(torch.zeros(WIDTH))
        self.matrix = nn.Parameter(torch.zeros(WIDTH, 2))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel, self.bias, padding=1)).mean((2, 3))
        return torch.relu(x) @ self.matrix


class BySize(nn.Module):
    """Computes something else for large images."""

    def __init__(self):
        super().__init__()
        self.small, self.large, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(3, WIDTH, 3), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = self.large(x) if x.shape[-1] > 10 else self.small(x)
        return self.head(F.relu(x).mean((2, 3)))


class SizeAsInput(nn.Module):
    """The second input only says how large the result is to be."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x, like):
        return F.interpolate(self.head(F.relu(self.stem(x))), size=like.shape[2:], mode="nearest")


class ComputedWeight(nn.Module):
    """A convolution for each image, whose kernel another layer computes, as in dynamic convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.kernel = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, WIDTH * WIDTH * 9)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        kernel = self.kernel(x.mean((2, 3))).reshape(n * WIDTH, WIDTH, 3, 3)
        x = F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n).reshape(n, WIDTH, h, w)
        return self.head(F.relu(x).mean((2, 3)))


class Routed(nn.Module):
    """Kernels of which each image gets its own mixture, as in CondConv; a product of two activations."""

    def __init__(self):
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, 3)
        self.experts, self.head = nn.Parameter(torch.zeros(3, WIDTH * WIDTH)), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        matrix = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.experts).unflatten(1, (WIDTH, WIDTH))
        return self.head(F.relu(torch.bmm(matrix, x.flatten(2))).mean(2))


class Indexed(nn.Module):
    """Attention and a layer as sums over named indices."""

    def __init__(self):
        super().__init__()
        self.stem, self.matrix = nn.Conv2d(3, 2 * WIDTH, 2, 2), nn.Parameter(torch.zeros(WIDTH, 2))

    def forward(self, x):
        keys, values = self.stem(x).flatten(2).chunk(2, 1)
        attention = torch.einsum("bci,bcj->bij", keys, keys).softmax(-1)
        mixed = torch.einsum("bij,bcj->bci", attention, values)
        return torch.einsum("co,bci->boi", self.matrix, mixed)


class Standardised(nn.Module):
    """A weight that is standardised in every forward, in a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, x):
        weight = self.conv.weight / self.conv.weight.norm(dim=1, keepdim=True)
        x = F.relu(self.stem(x))
        x = F.relu(F.conv2d(F.relu(F.conv2d(x, weight)), weight))
        return self.head(x.mean((2, 3)))


class FromDict(nn.Module):
    """A dict in, a dict out."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, batch):
        pooled = F.relu(self.conv(batch["pixels"])).mean((2, 3)) * batch["weight"]
        return {"logits": self.head(pooled)}


def random(*shape):
    return lambda count, seed: torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def pictures(count, seed):
    return images(count, seed=seed)


def two_pictures(count, seed):
    return images(count, seed=seed), images(count, size=12, seed=seed + 50)


def equal_pictures(count, seed):
    return images(count, seed=seed), images(count, seed=seed + 50)


def weighted(count, seed):
    return {"pixels": images(count, seed=seed), "weight": images(count, 1, seed=seed)[:, :1, 0, 0]}


def words(count, seed):
    return torch.randint(11, (count, 6), generator=torch.Generator().manual_seed(seed))


# A network, what it is given, its quantized weights, and its units as "path weights+activations".
KINDS = {
    "several inputs and outputs": (TwoInputsTwoOutputs, equal_pictures, "a b left right", None),
    "nested results": (Nested, pictures, "stem inner head", None),
    "shared layer": (Repeated, pictures, "stem conv head", None),
    "shared layer across another": (RepeatedAcross, pictures, "stem conv between head", None),
    "shared layer in a block": (RepeatedInside, pictures, "stem block.conv block.other head", None),
    "shared block": (RepeatedBlock, pictures, "stem block.conv block.other head", None),
    "shared layers across each other": (Crossed, pictures, "stem one other head", None),
    "one head for several levels": (Levels, pictures, "stem down head.0 head.2", None),
    "tied layers": (Tied, pictures, "stem a", None),
    "tied words": (TiedWords, words, "inner words", None),
    "places from a mask": (MaskedWords, words, "inner head", None),
    "transposed convolution": (Transposed, pictures, "down up head", None),
    "batch norm first": (NormFirst, pictures, "stem conv head", None),
    "attention": (Attention, pictures, "stem attention.in_proj_weight attention.out_proj head", None),
    "sequence first": (
        SequenceFirst,
        pictures,
        "stem layer.self_attn.in_proj_weight layer.self_attn.out_proj layer.linear1 layer.linear2 head",
        None,
    ),
    "volumes": (Volume, random(2, 4, 6, 8), "stem inner head", None),
    "LSTM": (Recurrent, random(7, 3), "stem head", None),
    "GRU": (Gated, random(7, 3), "stem head", None),
    "weights as arguments": (WeightsAsArguments, pictures, "kernel matrix", None),
    "branch on the size": (BySize, pictures, "small head", None),
    "size as input": (SizeAsInput, two_pictures, "stem head", None),
    "computed weight": (ComputedWeight, pictures, "stem kernel head", None),
    "product of activations": (Routed, pictures, "stem route experts head", None),
    "sums over indices": (Indexed, pictures, "stem weight", None),
    "standardised and shared": (Standardised, pictures, "stem weight head", None),
    "dict in and out": (FromDict, weighted, "conv head", None),
}
EVERY = pytest.mark.parametrize(("build", "batch", "weights", "units"), KINDS.values(), ids=KINDS)


def leaves(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def assert_close(ours, theirs):
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@EVERY
def test_captured_it_is_the_module(build, batch, weights, units):
    model = filled(build())
    graph = captured_once(model, batch(8, 0))  # as the tests below: it is captured here, or was there
    for count in (1, 2, 5):
        given = arguments(model, batch(count, 7))
        with torch.no_grad():
            assert_close(graph(**given), model(**given))


def quantize(model: nn.Module, batch, config: QuantConfig) -> tuple[fx.GraphModule, qdrop.Plan, list]:
    """What `qdrop.quantize` does, for inputs of any form."""
    inputs = arguments(model, batch)
    plan = pipeline.make_plan(graph := pipeline.capture(model, inputs), config)
    network = pipeline.insert(graph, plan, CPU)
    with pipeline.arithmetic():
        pipeline.calibrate(network, inputs, config, CPU)
        reports = list(pipeline.reconstruct(network, plan, inputs, config, 0, CPU))
    return pipeline.freeze(network), plan, reports


def config(granularity="block", placement="published"):
    quick = {"observer": "MinMaxObserver", "bit": 4}
    recon = ReconConfig(iters=2, batch_size=4, granularity=granularity)
    return QuantConfig(ActivationQConfig(**quick), WeightQConfig(**quick), placement=placement, recon=recon)


@EVERY
@pytest.mark.parametrize(("granularity", "placement"), [("block", "published"), ("layer", "integer")])
def test_quantized_saved_and_loaded(build, batch, weights, units, granularity, placement, tmp_path):
    model = filled(build())
    network, plan, reports = quantize(model, batch(8, 0), config(granularity, placement))
    assert sorted(spec.layer for spec in plan.quantizers if spec.kind is Kind.WEIGHT) == sorted(weights.split())
    assert [report.unit for report in reports] == [unit.module for unit in plan.units]
    given = arguments(model, batch(5, 7))
    with torch.no_grad():
        full, ours = model(**given), network(**given)
        assert all(value.isfinite().all() for value in leaves(ours))
        assert not all(torch.equal(a, b) for a, b in zip(leaves(full), leaves(ours), strict=True))
        for a, b in zip(leaves(ours), leaves(full), strict=True):
            assert (a - b).norm() < 0.7 * b.norm()
        qdrop.save(network, tmp_path / "network.safetensors")
        again = qdrop.load(tmp_path / "network.safetensors")
        for count in (1, 5):
            given = arguments(model, batch(count, 9))
            ours, theirs = network(**given), again(**given)
            assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
            assert all(torch.equal(a, b) for a, b in zip(leaves(ours), leaves(theirs), strict=True))
