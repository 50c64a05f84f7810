import pytest
import torch

from qdrop.quantization import blocks
from qdrop.quantization.affine import fake_quantize
from qdrop.quantization.blocks import in_blocks
from qdrop.quantization.drop import Drop, stream
from qdrop.quantization.layout import in_memory_order, memory_format

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random(layout, shape=(3, 5, 7, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)


def double(x, out):
    torch.mul(x, 2, out=out)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [1, 16, 419, 420, 421])
def test_blocks_of_any_size_give_the_whole(layout, size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", size)
    x, seen = random(layout), []

    def work(x, out):
        seen.append(x.numel())
        double(x, out)

    (out,) = in_blocks(work, 1, x)
    assert torch.equal(out, 2 * x) and out.stride() == x.stride()
    assert sum(seen) == x.numel() and max(seen) <= size * torch.get_num_threads()


def test_arguments_that_lie_in_memory_differently_meet(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    x = random(torch.channels_last)
    (out,) = in_blocks(lambda a, b, out: torch.sub(a, b, out=out), 1, x, x.contiguous())
    assert (out == 0).all()


def test_a_slice_that_is_not_dense_is_taken_as_well(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    x = random(torch.contiguous_format)[:, ::2, 1:]
    assert torch.equal(in_blocks(double, 1, x)[0], 2 * x)


def test_a_graph_is_not_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: in_blocks(double, 1, x))(torch.ones(100))
    assert sum("mul" in str(node.target) for node in graph.graph.nodes) == 1


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_quantizing_in_blocks_gives_the_same_bits(grad, prob, monkeypatch):
    x, scale = random(torch.channels_last).requires_grad_(), torch.tensor([0.3], requires_grad=True)

    def results():
        keep = Drop(prob, stream(torch.Generator().manual_seed(1))).mask(x)
        with torch.set_grad_enabled(grad):
            out = fake_quantize(x, scale, torch.tensor([4.0]), 0, 15, keep)
        return (out, *torch.autograd.grad(out.sum(), (x, scale))) if grad else (out,)

    whole = results()
    monkeypatch.setattr(blocks, "BLOCK", 50)
    torch.testing.assert_close(results()[-1], whole[-1])  # a scale's gradient is a sum
    assert all(torch.equal(a, b) for a, b in zip(results()[:2], whole[:2], strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 1, 4, 4), (6, 4)])
def test_formats_that_are_both_count_as_contiguous(shape):
    x = torch.empty(shape)
    assert memory_format(x) == torch.contiguous_format and in_memory_order(x, x) is x
    if len(shape) == 4:
        last = x.to(memory_format=torch.channels_last)
        assert (memory_format(last) == torch.channels_last) == (not last.is_contiguous())
        assert in_memory_order(last, last).is_contiguous()


def test_masks_are_the_same_in_any_layout():
    masks = [Drop(0.4, stream(torch.Generator().manual_seed(3))).mask(random(layout)).whole() for layout in LAYOUTS]
    assert torch.equal(*masks) and masks[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grad", [True, False])
def test_double_precision_stays_so(grad):
    x, scale = random(torch.contiguous_format).double(), torch.tensor([0.3], dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        assert fake_quantize(x, scale, torch.tensor([4.0]).double(), 0, 15).dtype == torch.float64


def test_an_expanded_tensor_gets_a_mask_of_its_own():
    mask = Drop(0.5, stream(torch.Generator().manual_seed(0))).mask(torch.zeros(1, 4).expand(200, 4)).whole()
    assert 0.4 < mask.mean() < 0.6
