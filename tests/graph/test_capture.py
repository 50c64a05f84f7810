"""What comes out of a capture computes what the module does, in a batch of any size, and leaves the module alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, filled, images, network, planned
from torch import fx, nn
from torch.utils import _pytree as pytree

from qdrop.graph.capture import capture
from qdrop.graph.capture.products import attention, einsum
from qdrop.graph.ops import GraphError, is_listed, operation, owner

# ---- what comes out ----


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_networks_compute_the_same_in_any_batch(name, count):
    model = network(name)
    x = images(count, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(capture(model, images(2))(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_rows_will_do_as_example(count):
    model, x = network("residual"), images(5)
    with torch.no_grad():
        torch.testing.assert_close(capture(model, images(count))(x), model(x), rtol=1e-4, atol=1e-5)


def test_where_the_user_left_training_on():
    model = network("residual").train()
    expected = copy.deepcopy(model).eval()(images())
    torch.testing.assert_close(capture(model, images())(images()), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_operators_are_of_the_table_and_bound_to_no_device(name):
    graph = capture(network(name), images(2))
    for node in graph.graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output") and is_listed(node)
        assert "device" not in node.kwargs


def test_shapes_and_rows_of_all_nodes():
    nodes = {node.name: node for node in capture(network("residual"), images(2)).graph.nodes}
    assert nodes["conv2d"].meta["shapes"] == [(2, 6, 8, 8)] and nodes["conv2d"].meta["rows"]
    assert nodes["linear"].meta["shapes"] == [(2, 5)] and nodes["linear"].meta["rows"]
    assert nodes["head_weight"].meta["shapes"] == [(5, 6)] and not nodes["head_weight"].meta["rows"]


def test_nodes_know_their_module():
    graph = capture(network("residual"), images(2))
    adds = [owner(node) for node in graph.graph.nodes if operation(node) == "add"]
    convs = [owner(node) for node in graph.graph.nodes if operation(node) == "conv2d"]
    (mean,) = [node for node in graph.graph.nodes if operation(node) == "mean"]
    assert adds == ["body.0", "body.1"] and owner(mean) == ""
    assert convs == ["stem.0", "body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2"]


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_any_size(name):
    """Pooling, interpolation and means follow the image."""
    model, x = network(name), images(3, size=12)
    graph = capture(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    assert graph.meta["any_size"]


class Pyramid(nn.Module):
    """A value enlarged to the size of another."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        coarse = F.relu(self.coarse(fine))
        return self.head(fine + F.interpolate(coarse, size=fine.shape[2:], mode="nearest"))


def test_a_feature_pyramid_follows_the_image():
    model, x = filled(Pyramid()), images(2, size=12)
    graph = capture(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


# ---- in place ----


class InPlace(nn.Module):
    """Every way to write over an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu6, self.silu = nn.Conv2d(3, 3, 1), nn.ReLU6(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        y = x * 1.0
        y += x
        y -= 0.5 * x
        y *= x
        y = F.relu_(y)
        y = F.leaky_relu(y, 0.1, inplace=True)
        y = F.elu_(F.hardtanh_(F.leaky_relu_(y, 0.5)))
        y = torch.relu_(y).add_(x).clamp_(-3, 3).mul_(2)
        return self.silu(self.relu6(F.hardtanh(y, inplace=True)))


class Overwritten(nn.Module):
    """In-place work whose result is read under the name of its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        F.relu_(y)
        z = y - 0.5
        return self.relu(z) * 2 + z  # the shortcut of a pre-activation block reads what is rectified by now


def test_what_is_overwritten_is_read_as_it_is_then():
    model = filled(Overwritten())
    with torch.no_grad():
        expected = model(images())
    torch.testing.assert_close(capture(model, images())(images()), expected, rtol=1e-4, atol=1e-5)


class Recorder(fx.Interpreter):
    """Keeps every value, and a copy of it as it was."""

    def __init__(self, graph):
        super().__init__(graph)
        self.values, self.kept = {}, {}

    def run_node(self, n):
        self.values[n] = super().run_node(n)
        if isinstance(self.values[n], torch.Tensor):
            self.kept[n] = self.values[n].detach().clone()
        return self.values[n]


def test_nothing_is_in_place():
    model = filled(InPlace())
    with torch.no_grad():
        expected = model(images())
    graph = capture(model, images())
    assert not any(operation(node).endswith("_") for node in graph.graph.nodes)
    torch.testing.assert_close(graph(images()), expected, rtol=1e-4, atol=1e-5)
    recorder = Recorder(graph)
    recorder.run(images())
    assert recorder.kept and all(torch.equal(recorder.values[n], kept) for n, kept in recorder.kept.items())


# ---- inputs and results of any form ----


class TwoImages(nn.Module):
    """Two inputs, two results."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, left, right):
        left, right = self.a(left), self.b(right)
        return left + right, left - right


class Labelled(nn.Module):
    """A dict of dicts, lists and tuples as result."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.box = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        pooled = x.mean((2, 3))
        return {"classes": self.head(pooled), "maps": [x, {"box": (self.box(pooled), None)}]}


class FromDict(nn.Module):
    """Takes a dict."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(6, 2)

    def forward(self, batch):
        pooled = F.relu(self.conv(batch["pixels"])).mean((2, 3))
        return self.head(torch.cat([pooled, batch["more"][0]], 1))


class ByName(nn.Module):
    """Arguments that a batch names; one has a default."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, pixels, mask=None, *, scale=2.0):
        x = self.conv(pixels) * scale
        return x if mask is None else x * mask


class Words(nn.Module):
    """Integers in, an embedding of them."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, numbers):
        return self.head(self.words(numbers))


def words(count, seed=0):
    return torch.randint(11, (count, 5), generator=torch.Generator().manual_seed(seed))


def two_images(count, seed=0):
    return {"left": images(count, seed=seed), "right": images(count, seed=seed + 9)}


def nested(count, seed=0):
    return {"batch": {"pixels": images(count, seed=seed), "more": [images(count, 1, seed=seed)[:, :2, 0, 0]]}}


def masked(count, seed=0):
    return {"pixels": images(count, seed=seed), "mask": images(count, seed=seed)[:, :1]}


# A network, the arguments it is called with, and how a data loader would give them.
NESTS = {
    "two images": (TwoImages, two_images, lambda given: tuple(given.values())),
    "dict as result": (Labelled, lambda n, s=0: {"x": images(n, seed=s)}, lambda given: given["x"]),
    "dict as input": (FromDict, nested, lambda given: given["batch"]),
    "by name": (ByName, masked, lambda given: given | {"labels": words(len(given["mask"]))}),
    "labels": (ByName, lambda n, s=0: {"pixels": images(n, seed=s)}, lambda given: (given["pixels"], words(2))),
    "integers": (Words, lambda n, s=0: {"numbers": words(n, s)}, lambda given: given["numbers"]),
}


@pytest.mark.parametrize(("build", "given", "loaded"), NESTS.values(), ids=NESTS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_nest_of_inputs_and_results(build, given, loaded, count):
    model = filled(build())
    graph = capture(model, loaded(given(2)))
    with torch.no_grad():
        ours, theirs = graph(**given(count, 1)), model(**given(count, 1))
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_without_an_input_is_refused():
    with pytest.raises(GraphError, match="forward of TwoImages takes left, right; the batch holds nothing for right"):
        capture(filled(TwoImages()), images(2))
    with pytest.raises(GraphError, match="the batch holds nothing for left, right"):
        capture(filled(TwoImages()), {"images": images(2)})


# ---- attention ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(4, 5, generator=torch.Generator().manual_seed(9))},
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool).tril(1)},
    ],
    ids=["plain", "scale", "causal", "added", "masked"],
)
def test_attention_is_that_of_torch(settings):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 6, generator=generator) for n in (4, 5, 5))
    expected = F.scaled_dot_product_attention(query, key, value, **settings)
    torch.testing.assert_close(attention(query, key, value, **settings), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "first", "second", "product"),
    [
        ("nchw,oc->nohw", (2, 3, 4, 5), (6, 3), True),
        ("nchw, chd -> ndw", (2, 3, 4, 5), (3, 4, 6), True),
        ("nc,cok->nok", (2, 3), (3, 4, 5), True),
        ("nc,nd->ncd", (2, 3), (2, 4), False),
        ("nc,c->nc", (2, 3), (3,), False),
        ("nc,cd", (2, 3), (3, 4), False),
        ("nch,co->no", (2, 3, 4), (3, 5), False),
        ("...c,co->...o", (2, 3), (3, 4), False),
        ("nii,io->no", (2, 3, 3), (3, 4), False),
    ],
)
def test_a_sum_over_indices_is_that_of_torch(equation, first, second, product):
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator) for shape in (first, second)]
    found = einsum(equation, operands)
    assert (found is not None) is product
    if found is not None:
        torch.testing.assert_close(found, torch.einsum(equation, operands))


def test_attention_of_grouped_queries_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 4, 6, generator=generator) for heads in (4, 2, 2))
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value, enable_gqa=True), expected, rtol=1e-5, atol=1e-6)


# ---- the user's model ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_left_as_it_was(name, training):
    model = network(name).train(training)
    next(model.parameters()).requires_grad_(False)
    list(model.modules())[-1].train(not training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {path: (id(m), type(m), m.training, getattr(m, "inplace", None)) for path, m in model.named_modules()}
    parameters = {path: (id(p), p.requires_grad, p.grad) for path, p in model.named_parameters()}
    planned(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    after = {path: (id(m), type(m), m.training, getattr(m, "inplace", None)) for path, m in model.named_modules()}
    assert after == modules
    assert {path: (id(p), p.requires_grad, p.grad) for path, p in model.named_parameters()} == parameters


class Shifted(nn.Module):
    """Subtracts a tensor made in `forward`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))


def test_tensors_made_in_forward_are_not_left_in_the_model():
    model = filled(Shifted())
    before = set(vars(model))
    graph = capture(model, images())
    assert set(vars(model)) == before
    torch.testing.assert_close(graph(images()), model(images()))


def test_the_model_still_trains_after_it_was_captured():
    model = network("residual")
    capture(model, images())
    model.train()(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_unfolded_weights_are_shared_and_frozen():
    model = network("residual")
    parameters = dict(capture(model, images()).named_parameters())
    assert parameters["head.weight"].data_ptr() == model.head.weight.data_ptr()
    assert not any(p.requires_grad for p in parameters.values())
    assert parameters["stem.0.weight"].data_ptr() != model.stem[0].weight.data_ptr()


def test_the_model_is_restored_after_a_failure():
    model = filled(Branches()).train()
    with pytest.raises(GraphError):
        capture(model, images())
    assert all(m.training for m in model.modules())


# ---- what is refused, and how ----


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = DataDependent()

    def forward(self, x):
        return self.block(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) + torch.randn(1, 3, 1, 1)


class Changing(nn.Module):
    """Remembers how often it was called."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 3, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


class FixedBatch(nn.Module):
    """Rows are counted by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x).reshape(2, 192)


class Sizes(nn.Module):
    def forward(self, x):
        return x.shape[0]


REFUSED = {
    "data-dependent": (Branches, ["cannot capture Branches", "test_capture.py", "if x.sum() > 0"]),
    "random": (Noisy, ["draws random numbers"]),
    "changing": (Changing, ["differs from the model by"]),
    "fixed batch": (FixedBatch, ["batches of 2 alone"]),
    "no tensor": (Sizes, ["returns no tensor"]),
    "no layer": (nn.ReLU, ["no convolution, linear layer or other product"]),
}


@pytest.mark.parametrize(("build", "parts"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_reason_and_the_line(build, parts):
    with pytest.raises(GraphError) as caught:
        planned(filled(build()))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite():
    model = network("residual")
    with torch.no_grad():
        model.body[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(GraphError, match="not finite"):
        capture(model, images())


def test_a_forward_without_names_is_refused():
    class Unnamed(nn.Module):
        def forward(self, *args):
            return args[0]

    with pytest.raises(GraphError, match="forward of Unnamed has no named parameter"):
        capture(Unnamed(), images())
