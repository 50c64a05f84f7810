"""Places for values: what goes where, what comes back, and what happens when memory runs out."""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import images, network, quantized

from qdrop.config import CacheConfig, ReconConfig
from qdrop.graph.split import segments
from qdrop.runtime.memory import free_and_total, is_out_of_memory
from qdrop.solver import recon
from qdrop.solver.activations import storage, stored
from qdrop.solver.activations.cache import ActivationCache, run_all
from qdrop.solver.activations.storage import Storage
from qdrop.solver.activations.stored import CacheError, Stored
from qdrop.solver.recon import reconstruct

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = (10, 3, 4)
CONFIG = ReconConfig(batch_size=4, iters=8)
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def values(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(device, dtype="float32", folder=None):
    value = Storage(CacheConfig(device, dtype), CPU, folder=folder).new(SHAPE, torch.float32)
    value[0:6], value[6:10] = values()[:6], values()[6:]
    return value


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_values_keep_their_layout(device, tmp_path):
    """Channels-last, in any place: other layouts would be brought there and back in every iteration."""
    storage = Storage(CacheConfig(device), CPU, folder=tmp_path)
    given = values((10, 3, 4, 5)).to(memory_format=torch.channels_last)
    value = storage.new(given.shape, torch.float32, torch.channels_last)
    value[0:10] = given
    rows = torch.tensor([7, 0, 7])
    for found, expected in ((value[2:5], given[2:5]), (value[rows], given[rows])):
        assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)
    value.move(Storage(CacheConfig("disk"), CPU, folder=tmp_path).new(given.shape, torch.float32, value.layout))
    assert torch.equal(value[rows], given[rows]) and value.layout == torch.channels_last


def mapped(folder):
    """Files in `folder` that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def with_cache(**kwargs):
    return replace(CONFIG, cache=CacheConfig(**kwargs))


def walk(config, scratch=None, **kwargs):
    graph, plan = quantized(network("residual"))
    reports = [
        replace(r, seconds=0.0, peak_memory_mb=0.0)
        for r in reconstruct(graph, plan, {"x": images()}, config, 0, CPU, None, scratch)
    ]
    return reports, {key: value.clone() for key, value in graph.state_dict().items()}


def assert_same(first, second):
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][key]) for key, value in first[1].items())


# ---- a value ----


@pytest.mark.parametrize("device", ["cpu", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_is_read(device, dtype, tmp_path):
    value = filled(device, dtype, tmp_path)
    expected = values().to(getattr(torch, dtype)).float()
    rows = torch.tensor([9, 0, 3, 3])
    assert (len(value), value.shape, value.place, value.dtype) == (10, SHAPE, device, torch.float32)
    assert value.nbytes == expected.numel() * (4 if dtype == "float32" else 2)
    assert torch.equal(value[2:7], expected[2:7]) and torch.equal(value[rows], expected[rows])
    assert value[rows].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moving_changes_nothing(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PART", 100)  # a few rows at a time
    value, before = filled("cpu", dtype), filled("cpu", dtype)[:]
    value.move(Storage(CacheConfig("disk", dtype), CPU, folder=tmp_path).new(SHAPE, torch.float32))
    assert value.place == "disk" and torch.equal(value[:], before)


def test_rows_of_a_file_are_copies(tmp_path):
    value = filled("disk", folder=tmp_path)
    value[0:3].zero_()
    assert torch.equal(value[:], values())


def test_integers_keep_their_type():
    value = Storage(CacheConfig("cpu", "bfloat16"), CPU).new((4,), torch.int64)
    value[0:4] = torch.tensor([1, 2, 3, 2**40 + 1])
    assert value[:].tolist() == [1, 2, 3, 2**40 + 1]


def test_too_large_for_float16():
    value = Storage(CacheConfig("cpu", "float16"), CPU).new((2,), torch.float32)
    with pytest.raises(CacheError, match=r"a value of 7e\+04 .* use bfloat16 or float32"):
        value[0:2] = torch.tensor([1.0, 70000.0])
    value[0:2] = torch.tensor([1.0, torch.inf])  # was infinite before: the loss will say so
    assert value[:].tolist() == [1.0, torch.inf]


# ---- a place ----


@pytest.mark.parametrize(
    ("config", "device", "keep_gpu", "places"),
    [
        ("auto", GPU, True, ["gpu", "cpu", "disk"]),
        ("auto", GPU, False, ["cpu", "disk"]),
        ("auto", CPU, True, ["cpu", "disk"]),
        ("gpu", GPU, True, ["gpu", "cpu", "disk"]),
        ("cpu", GPU, True, ["cpu", "disk"]),
        ("disk", GPU, True, ["disk"]),
    ],
)
def test_places_by_setting(config, device, keep_gpu, places):
    assert Storage(CacheConfig(config), device, keep_gpu)._places == places


def test_a_gpu_cache_without_a_gpu(caplog):
    assert Storage(CacheConfig("gpu"), CPU).new(SHAPE, torch.float32).place == "cpu"
    assert "recon.cache.device = gpu" in caplog.text


@pytest.mark.parametrize(
    ("gpu", "cpu", "place"), [(100, 100, "gpu"), (45, 100, "cpu"), (25, 45, "disk"), (45, 56, "cpu"), (56, 0, "gpu")]
)
def test_auto_takes_the_nearest_place_with_room(gpu, cpu, place, monkeypatch):
    """Room for 40 bytes beside the 15 of 100 that are the step's."""
    monkeypatch.setattr(storage, "free_and_total", lambda device: (gpu if device == GPU else cpu, 100))
    assert Storage(CacheConfig(), GPU)._place(40) == place


def test_memory_there_is():
    free, total = free_and_total(CPU)
    assert 0 < free < total


def test_images_are_not_copied():
    given = images()
    assert Storage(CacheConfig("disk", "bfloat16"), CPU).adopt(given)[:].data_ptr() == given.data_ptr()


# ---- files ----


@linux
def test_files_lie_in_the_folder_and_go_with_the_value(tmp_path):
    value = filled("disk", folder=tmp_path)
    assert len(mapped(tmp_path)) == 1
    del value
    gc.collect()
    assert mapped(tmp_path) == [] and list(tmp_path.iterdir()) == []


@linux
@pytest.mark.parametrize("fails", [False, True])
def test_no_file_outlives_a_run(fails, tmp_path, monkeypatch):
    seen = []

    def look(*args, **kwargs):
        seen.append(len(mapped(tmp_path)))
        if fails and len(seen) == 3:
            raise ZeroDivisionError
        return 0.0

    monkeypatch.setattr(recon, "reconstruct_unit", look)
    try:
        walk(with_cache(device="disk"), tmp_path)
    except ZeroDivisionError:
        assert fails
    gc.collect()
    assert seen[:3] == [1, 3, 3]  # the target; then two inputs and a target
    assert mapped(tmp_path) == [] and list(tmp_path.iterdir()) == []


@linux
def test_what_was_touched_leaves_memory(tmp_path):
    """A file of 64 MB is written and read in parts without ever adding as much to what is resident."""

    def resident():
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssShmem"))
        file = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssFile"))
        return sum(int(text.split()[1]) for text in (line, file)) / 1024

    value = Storage(CacheConfig("disk"), CPU, folder=tmp_path).new((64, 1 << 18), torch.float32)
    before = resident()
    for start in range(0, 64, 4):
        value[start : start + 4] = torch.full((4, 1 << 18), float(start))
    total = sum(value[torch.tensor([row])].mean().item() for row in range(64))
    assert resident() - before < 16
    assert total == sum(row // 4 * 4 for row in range(64))


def test_a_full_disk(tmp_path, monkeypatch):
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(OSError, match=r"needs another .* GB in .* set process\.out"):
        filled("disk", folder=tmp_path)


# ---- memory runs out ----


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError(ALLOCATOR), True),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_out_of_memory(error, answer):
    assert is_out_of_memory(error) is answer


def test_survives_once_per_place(tmp_path, caplog):
    place = Storage(CacheConfig("cpu", "bfloat16"), CPU, folder=tmp_path)
    value = place.new(SHAPE, torch.float32)
    value[0:10] = values()
    before, calls = value[:].clone(), []

    def work(failures):
        calls.append(value.place)
        if len(calls) <= failures:
            raise MemoryError("simulated")
        return "done"

    assert place.survive(lambda: work(1)) == "done"
    assert calls == ["cpu", "disk"] and torch.equal(value[:], before)
    assert "moves from cpu to disk (simulated)" in caplog.text
    assert place.new(SHAPE, torch.float32).place == "disk"
    calls.clear()
    with pytest.raises(CacheError, match=r"cache on disk; lower recon\.batch_size: simulated"):
        place.survive(lambda: work(1))


class OnGpu(Stored):
    """Says that it is on a GPU, until it is moved."""

    place = "gpu"

    def move(self, empty):
        super().move(empty)
        self.__class__ = Stored


def test_memory_that_runs_out_on_the_way_to_the_next_place(tmp_path, monkeypatch):
    """One value has moved by then, the others have not; all end up on disk."""
    place = Storage(CacheConfig("cpu"), CPU, folder=tmp_path)
    place._places.insert(0, "gpu")
    stored = [place._register(OnGpu(values(seed=number), torch.float32)) for number in range(3)]
    original, allocated, calls = Storage._allocate, [], []

    def allocate(self, there, *args):
        allocated.append(there)
        if allocated == ["cpu", "cpu"]:
            raise RuntimeError(ALLOCATOR)
        return original(self, there, *args)

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("simulated")
        return "done"

    monkeypatch.setattr(Storage, "_allocate", allocate)
    assert place.survive(work) == "done"
    assert allocated == ["cpu", "cpu", "disk", "disk", "disk"]
    assert [value.place for value in stored] == ["disk"] * 3
    assert all(torch.equal(value[:], values(seed=number)) for number, value in enumerate(stored))


def test_a_full_gpu_is_not_helped_by_moving_from_main_memory():
    place = Storage(CacheConfig("cpu"), GPU)
    calls = []

    def work():
        calls.append(1)
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(CacheError, match=r"memory of the GPU ran out .*recon\.batch_size: simulated"):
        place.survive(work)
    assert len(calls) == 1


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        Storage(CacheConfig("cpu"), CPU).survive(lambda: 1 // 0)


def test_at_last_a_run_goes_on_without_compilation(tmp_path, monkeypatch, caplog):
    """Where the cache is on disk already and memory runs out while compiling."""

    def fails(*args, **kwargs):
        raise RuntimeError(ALLOCATOR)

    expected = walk(replace(CONFIG, compile="off"))
    monkeypatch.setattr("torch.compile", fails)
    assert_same(expected, walk(replace(with_cache(device="disk"), compile="on"), tmp_path))
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "memory ran out once more: going on without compilation"
    ]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("simulated"), MemoryError("simulated"), RuntimeError(ALLOCATOR)]
)
@pytest.mark.parametrize(
    ("where", "call"),
    [("reconstruct_unit", 2), ("run_all", 3), ("reconstruction_loss", 2), ("reconstruction_loss", 13)],
)
def test_a_run_goes_on_and_ends_as_if_nothing_had_been(where, call, error, tmp_path, monkeypatch, caplog):
    """Memory runs out while stepping, caching or measuring; the outcome is the same bit for bit."""
    expected = walk(CONFIG)
    original, calls = getattr(recon, where), []

    def fail_once(*args, **kwargs):
        calls.append(where)
        result = original(*args, **kwargs)  # what it did before it failed must not count
        if len(calls) == call:
            raise error
        return result

    monkeypatch.setattr(recon, where, fail_once)
    assert_same(expected, walk(CONFIG, tmp_path))
    assert len(calls) > call and "moves from cpu to disk" in caplog.text


# ---- the run ----


def test_the_place_does_not_matter(tmp_path):
    expected = walk(CONFIG)
    assert_same(expected, walk(with_cache(device="disk"), tmp_path))
    assert_same(expected, walk(with_cache(device="cpu")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_is_close(dtype, tmp_path):
    (full, _), (reduced, _) = walk(CONFIG), walk(with_cache(dtype=dtype, device="disk"), tmp_path)
    assert full != reduced
    for ours, theirs in zip(reduced, full, strict=True):
        assert ours.loss_before == pytest.approx(theirs.loss_before, rel=0.1)


def test_the_full_precision_input_is_dropped_before_the_output_is_stored(tmp_path, monkeypatch):
    """At no time are there more than three values: two inputs and a target, or one input and two outputs."""
    held, original = [], Storage.new

    def new(self, *args, **kwargs):
        value = original(self, *args, **kwargs)
        held.append(len(self._values))
        return value

    monkeypatch.setattr(Storage, "new", new)
    walk(with_cache(device="disk"), tmp_path)
    assert max(held) == 3


def test_results_of_a_part_are_kept_by_the_storage(tmp_path):
    graph, plan = quantized(network("residual"))
    part = segments(graph, plan)[0]
    (plain,) = run_all(part.module, [images()], 4, CPU)
    (kept,) = run_all(part.module, [images()], 4, CPU, Storage(CacheConfig("disk"), CPU, folder=tmp_path))
    assert isinstance(kept, Stored) and kept.place == "disk" and torch.equal(kept[:], plain)


def test_forgetting_keeps_what_is_read_later():
    graph, plan = quantized(network("unet"))
    parts = segments(graph, plan)
    cache = ActivationCache({"x": images()}, parts)
    last = {name: index for index, part in enumerate(parts) for name in part.inputs}
    assert any(last[name] > index for index, part in enumerate(parts) for name in part.inputs)
    for index, part in enumerate(parts):
        cache.forget_full(index)
        for name in part.inputs:
            pair = cache[name]
            shared = pair.full is pair.quantized
            assert shared == (last[name] == index or name == parts[0].inputs[0])
        cache.advance(index, part, [torch.zeros(1) for _ in part.outputs], [torch.ones(1) for _ in part.outputs])
