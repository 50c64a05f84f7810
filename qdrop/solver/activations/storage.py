"""Where values of all calibration images are kept: on the GPU, in main memory, or in memory-mapped files.

storage = Storage(CacheConfig(device="auto", dtype="bfloat16"), device)
value = storage.new((1024, 64, 56, 56), torch.float32, torch.channels_last)
value[0:32] = batch     # written in the storage's precision
value[rows]             # float32 again
"""

import gc
import logging
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from qdrop.config import CacheConfig
from qdrop.runtime.memory import free_and_total, is_out_of_memory
from qdrop.solver.activations.stored import CacheError, Place, Stored

log = logging.getLogger(__name__)

T = TypeVar("T")

CPU = torch.device("cpu")
RESERVE = 0.15
"""Share of a memory that `auto` leaves to the step."""


class Storage:
    """Finds a place for values, nearest to the computation first.

    With `auto` a value goes to the nearest place with room for it, beside the share that is left to the step.
    Files have no name: the system removes them with the last reference, even if the process is killed.

    Args:
        config: Place and precision.
        device: Where is computed.
        keep_gpu: Whether `auto` may use the GPU, as in the published configs.
        folder: Where files are put; None: the system's temporary folder.
    """

    def __init__(
        self, config: CacheConfig, device: torch.device, keep_gpu: bool = True, folder: Path | None = None
    ) -> None:
        self._device, self._folder = device, folder
        self._dtype = getattr(torch, config.dtype)
        self._measures = config.device == "auto"
        self._places: list[Place] = ["gpu", "cpu", "disk"]
        first: Place = config.device if config.device != "auto" else "gpu" if keep_gpu else "cpu"
        if first == "gpu" and device.type == "cpu":
            if not self._measures:
                log.warning("recon.cache.device = gpu, but this run computes on the CPU: kept in main memory")
            first = "cpu"
        del self._places[: self._places.index(first)]
        self._values: weakref.WeakSet[Stored] = weakref.WeakSet()

    def new(
        self, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Stored:
        """Room for a value.

        Args:
            shape: `[N, ...]`.
            dtype: Its own type; floating-point values are stored in the storage's.
            memory_format: How it lies in memory.

        Raises:
            OSError: If it goes to disk and there is no room.
        """
        stored = self._dtype if dtype.is_floating_point else dtype
        place = self._place(torch.Size(shape).numel() * stored.itemsize)
        return self._register(self._allocate(place, shape, dtype, stored, memory_format))

    def adopt(self, tensor: Tensor) -> Stored:
        """A value that its owner keeps in memory anyway `[N, ...]`: only brought nearer, where there is room."""
        if self._place(tensor.nbytes) == "gpu":
            return self._register(Stored(tensor.to(self._device), tensor.dtype))
        return Stored(tensor, tensor.dtype)

    def survive(self, work: Callable[[], T]) -> T:
        """What `work()` returns; if memory runs out, everything moves one place further away and it is repeated.

        Args:
            work: Can be called again after it failed.

        Raises:
            CacheError: If memory ran out and there is no place further away.
        """
        while True:
            try:
                self._move_on()
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                of_gpu = self._device.type == "cuda" and isinstance(error, torch.OutOfMemoryError)
                if len(self._places) == 1 or (of_gpu and self._places[0] != "gpu"):
                    memory = "memory of the GPU" if of_gpu else "memory"
                    raise CacheError(
                        f"{memory} ran out with the cache on {self._places[0]}; lower recon.batch_size: {error}"
                    ) from error
                log.warning("memory ran out; the cache moves from %s to %s (%s)", *self._places[:2], error)
            self._places.pop(0)
            gc.collect()  # here, where the error no longer holds on to what was being computed

    def _move_on(self) -> None:
        """Bring what lies in a place that was given up to the next one."""
        left_behind = [value for value in self._values if value.place not in self._places]
        for value in left_behind:
            place = self._place(value.nbytes)
            value.move(self._allocate(place, value.shape, value.dtype, value.stored_dtype, value.layout))
        if left_behind and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _place(self, size: int) -> Place:
        """Where a value of so many bytes goes."""
        if not self._measures:
            return self._places[0]
        for place, device in (("gpu", self._device), ("cpu", CPU)):
            if place in self._places:
                free, total = free_and_total(device)
                if size <= free - RESERVE * total:
                    return place
        return "disk"

    def _allocate(
        self,
        place: Place,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        stored: torch.dtype,
        layout: torch.memory_format,
    ) -> Stored:
        if place == "disk":
            file = _map(torch.Size(shape).numel() * stored.itemsize, self._folder)
            strides = torch.empty(shape, device="meta", memory_format=layout).stride()
            return Stored(torch.frombuffer(file, dtype=stored).as_strided(shape, strides), dtype, file)
        device = self._device if place == "gpu" else CPU
        return Stored(torch.empty(shape, dtype=stored, device=device, memory_format=layout), dtype)

    def _register(self, value: Stored) -> Stored:
        self._values.add(value)
        return value


def _map(size: int, folder: Path | None) -> mmap.mmap:
    """A mapping of a nameless file of `size` bytes.

    Raises:
        OSError: If there is no room for it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        free = shutil.disk_usage(folder or tempfile.gettempdir()).free
        if size > free:
            raise OSError(
                f"the cache needs another {size / 1e9:.1f} GB in {folder or tempfile.gettempdir()}, where"
                f" {free / 1e9:.1f} GB are free; set process.out to a larger disk, or use fewer images"
                " (quant.calibrate) or recon.cache.dtype = bfloat16"
            )
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # blocks are reserved now: a full disk later would kill the process
            os.posix_fallocate(file.fileno(), 0, size)
        return mmap.mmap(file.fileno(), size)
