"""Batches of a unit's data, from wherever it is kept."""

import threading
import time

import pytest
import torch

from qdrop.config import CacheConfig
from qdrop.solver.activations import batches
from qdrop.solver.activations.batches import Batches
from qdrop.solver.activations.cache import Pair
from qdrop.solver.activations.storage import Storage
from qdrop.solver.activations.stored import Stored

CPU = torch.device("cpu")
N = 12


def values(seed):
    return torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(seed))


def data(device, dtype="float32", folder=None, places=None):
    stored = []
    for seed in range(3):
        value = Storage(CacheConfig(places[seed] if places else device, dtype), CPU, folder=folder).new(
            (N, 2, 3), torch.float32
        )
        value[0:N] = values(seed)
        stored.append(value)
    return Batches([Pair(*stored[:2])], [stored[2]], CPU)


def draws(count=7):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(N, (count, 4), generator=generator)


@pytest.mark.parametrize("device", ["cpu", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_come_in_order(device, dtype, tmp_path):
    source = data(device, dtype, tmp_path)
    expected = [values(seed).to(getattr(torch, dtype)).float() for seed in range(3)]
    seen = list(source.stream(draws()))
    assert len(source) == N and len(seen) == 7
    for rows, batch in zip(draws(), seen, strict=True):
        for tensor, value in zip((*batch.full, *batch.quantized, *batch.target), expected, strict=True):
            assert tensor.dtype == torch.float32 and torch.equal(tensor, value[rows])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_any_number_of_batches(count, tmp_path):
    assert len(list(data("disk", folder=tmp_path).stream(draws(count)))) == count


def test_main_memory_is_waited_for(monkeypatch):
    """A copy from a GPU that nobody waits for would be read before it is there."""
    original, asked = torch.Tensor.to, []

    def to(self, *args, **kwargs):
        asked.append(kwargs.get("non_blocking", False))
        return original(self, *args, **kwargs)

    source = data("cpu")
    monkeypatch.setattr(torch.Tensor, "to", to)
    source.gather(torch.tensor([1, 2]))
    assert asked and not any(asked)


def test_plain_tensors_do():
    one = values(0)
    batch = Batches([Pair(one, one)], [values(1)], CPU).gather(torch.tensor([3, 3, 0]))
    assert torch.equal(batch.full[0], one[[3, 3, 0]]) and batch.quantized[0] is batch.full[0]
    assert torch.equal(batch.target[0], values(1)[[3, 3, 0]])


def test_several_inputs_and_targets():
    given = [values(seed) for seed in range(6)]
    batches = Batches([Pair(*given[:2]), Pair(*given[2:4])], given[4:], CPU)
    batch = batches.gather(torch.tensor([2, 0, 2]))
    found = [*zip(batch.full, batch.quantized, strict=True), batch.target]
    expected = [given[:2], given[2:4], given[4:]]
    assert len(batches) == N and [len(values) for values in found] == [2, 2, 2]
    assert all(
        torch.equal(a, b[[2, 0, 2]]) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("places", [("disk", "cpu", "cpu"), ("cpu", "cpu", "disk")])
def test_one_value_on_disk_is_enough_to_fetch_ahead(places, tmp_path):
    """The next batches are gathered, by another thread, while the step runs."""
    source, threads = data(None, folder=tmp_path, places=places), []
    original = source.gather

    def gather(rows, rooms):
        threads.append(threading.current_thread())
        return original(rows, rooms)

    source.gather = gather
    stream = source.stream(draws())
    next(stream)
    deadline = time.monotonic() + 10
    while len(threads) < 1 + batches.AHEAD and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(threads) == 1 + batches.AHEAD
    assert threading.current_thread() not in threads
    stream.close()
    assert not any(thread.is_alive() for thread in threads)


def test_the_thread_that_steps_allocates_what_another_one_reads_into(monkeypatch, tmp_path):
    """The C library keeps what a thread has freed for that thread."""
    source, threads, room = data("disk", folder=tmp_path), set(), Stored.room

    def watched(*args, **kwargs):
        threads.add(threading.current_thread())
        return room(*args, **kwargs)

    monkeypatch.setattr(Stored, "room", watched)
    list(source.stream(draws()))
    assert threads == {threading.current_thread()}


def test_values_at_hand_are_not_fetched_ahead():
    source, asked = data("cpu"), []
    gather = source.gather
    source.gather = lambda rows, rooms=None: asked.append(rows) or gather(rows, rooms)
    next(source.stream(draws()))
    assert len(asked) == 1


def test_an_error_in_the_background_arrives(tmp_path):
    source = data("disk", folder=tmp_path)
    stream = source.stream(torch.tensor([[0], [N]]))
    with pytest.raises(IndexError):
        list(stream)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["gpu", "cpu", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_on_a_gpu(device, dtype, tmp_path):
    gpu = torch.device("cuda")
    place = Storage(CacheConfig(device, dtype), gpu, folder=tmp_path)
    stored = [place.new((N, 2, 3), torch.float32) for _ in range(3)]
    for seed, value in enumerate(stored):
        value[0:N] = values(seed).to(gpu)
    expected = [values(seed).to(getattr(torch, dtype)).float() for seed in range(3)]
    for rows, batch in zip(draws(), Batches([Pair(*stored[:2])], [stored[2]], gpu).stream(draws()), strict=True):
        for tensor, value in zip((*batch.full, *batch.quantized, *batch.target), expected, strict=True):
            assert tensor.is_cuda and torch.equal(tensor.cpu(), value[rows])
