"""What is handed in from Python is checked before any work."""

import pytest
import torch
from networks import Network
from torch import nn

import qdrop
from qdrop import checks
from qdrop.checks import InputError

NEAREST = {"w_qconfig": {"observer": "MinMaxObserver"}, "a_qconfig": {"observer": "MinMaxObserver"}, "recon": None}


def images(count=4):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_a_network_is_taken_out_of_what_torch_wraps_around_it():
    model = Network()
    for wrapped in (model, torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        assert checks.original(wrapped) is model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (torch.jit.script, "'1' in the model is TorchScript; pass"),
        (torch.compile, "'1' in the model is compiled; pass"),
    ],
)
def test_a_layer_without_its_code_is_refused(change, told):
    model = nn.Sequential(Network(), nn.Linear(5, 5))
    model[1] = change(model[1])
    with pytest.raises(qdrop.GraphError, match=told):
        qdrop.quantize(model, images(), NEAREST)


@pytest.mark.parametrize(("name", "value"), [("head.weight", torch.nan), ("head.bias", torch.inf)])
def test_a_weight_that_is_not_finite_is_named(name, value):
    model = Network()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = value
    with pytest.raises(qdrop.GraphError, match=f"'{name}' holds {value}"):
        qdrop.quantize(model, images(), NEAREST)


@pytest.mark.parametrize("seed", ["a", 1.5, -1, 2**63, True, None, 10**40])
def test_what_is_no_seed(seed):
    with pytest.raises(InputError, match="expected a whole number from 0 to"):
        checks.check_seed(seed)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", 3.5, "x" * 5000])
def test_what_is_no_device(device):
    with pytest.raises(InputError, match="device = ") as caught:
        checks.usable_device(device)
    assert len(str(caught.value)) < 500


def test_a_file_is_loaded_onto_a_device_that_is_there(tmp_path):
    quantized, _ = qdrop.quantize(Network(), images(), NEAREST)
    qdrop.save(quantized, tmp_path / "q")
    with pytest.raises(InputError, match="device = 'gpu'"):
        qdrop.load(tmp_path / "q", device="gpu")


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (images().to_sparse(), "a batch is sparse or nested"),
        (images().to("meta"), "a batch is on the meta device"),
        ([images(), images().to("meta")], "a batch is on the meta device"),
    ],
)
def test_images_without_plain_values(batch, told):
    with pytest.raises(InputError, match=told):
        checks.collect(Network(), batch, 8)


class FixedBatch(Network):
    def forward(self, x):
        return super().forward(x.reshape(2, 3, 12, 12))


def test_a_forward_that_fixes_the_size_of_a_batch():
    with pytest.raises(qdrop.GraphError):
        qdrop.quantize(FixedBatch(), images(), NEAREST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_no_say(dtype):
    torch.manual_seed(0)
    model = Network()
    expected, _ = qdrop.quantize(model, images(), NEAREST)
    with torch.autocast("cpu", dtype):
        found, _ = qdrop.quantize(model, images(), NEAREST)
    assert torch.equal(expected(images()), found(images()))


def test_no_images_through_a_network_that_learns():
    quantized, _ = qdrop.quantize(Network(), images(), NEAREST)
    quantized.requires_grad_(True)
    quantized(images()[:0]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in quantized.parameters())
