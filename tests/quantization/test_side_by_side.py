"""Pieces of work on several threads."""

import multiprocessing
import sys
from threading import Barrier, get_ident

import pytest
import torch

from qdrop.quantization import blocks
from qdrop.quantization.affine import fake_quantize
from qdrop.quantization.drop import Drop, stream
from qdrop.quantization.side_by_side import side_by_side

THREADS = 3


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_piece_is_worked_on_once(count):
    done = torch.zeros(count)
    side_by_side(lambda piece: piece.add_(1), ((piece,) for piece in done))
    assert (done == 1).all() and torch.get_num_threads() == THREADS


def test_as_many_at_a_time_as_there_are_threads_and_each_computes_alone():
    together, seen = Barrier(THREADS, timeout=60), []

    def work(number):
        together.wait()  # nobody passes before all are there
        seen.append((number, get_ident(), torch.get_num_threads()))

    side_by_side(work, [(0,), (1,), (2,)])
    numbers, idents, alone = zip(*seen, strict=True)
    assert sorted(numbers) == [0, 1, 2] and len(set(idents)) == THREADS and set(alone) == {1}
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize("wrong", range(4))
def test_an_error_in_a_piece_is_raised(wrong):
    def work(number):
        if number == wrong:
            raise ValueError(f"piece {number}")

    with pytest.raises(ValueError, match=f"piece {wrong}"):
        side_by_side(work, [(number,) for number in range(4)])
    assert torch.get_num_threads() == THREADS


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked by default on Linux alone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_in_which_the_other_threads_are_not(threads):
    test_each_piece_is_worked_on_once(50)
    process = multiprocessing.get_context("fork").Process(target=test_each_piece_is_worked_on_once, args=(50,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("scale", [torch.tensor([0.3]), torch.linspace(0.1, 0.9, 5).view(1, 5, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_quantizing_gives_the_same_bits_on_any_number_of_threads(mode, scale, layout, prob, monkeypatch):
    monkeypatch.setattr(blocks, "SMALLEST", 16)
    monkeypatch.setattr(blocks, "BLOCK", 50)

    def results(count):
        torch.set_num_threads(count)
        with mode():
            x = torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
            mask = Drop(prob, stream(torch.Generator().manual_seed(1))).mask(x) if prob < 1 else None
            leaf = x.requires_grad_() if mode is torch.enable_grad else x
            out = fake_quantize(leaf, scale, torch.full_like(scale, 4), 0, 15, mask)
            grads = torch.autograd.grad(out.sum(), leaf) if mode is torch.enable_grad else ()
        return out, *grads

    assert all(torch.equal(one, many) for one, many in zip(results(1), results(THREADS), strict=True))
    assert results(THREADS)[0].is_contiguous(memory_format=layout)
