"""How much memory is free and was held, and whether an error means that there was none left."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of a container or of a job (version 2 of its interface)."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Which of them this process is in."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3), as its malloc.h numbers them."""
_FOR_LARGE_TENSORS = 1 << 30
"""Bytes; a threshold above the activations of a step, and below much of what is cached for all images."""
_LARGEST_BY_ITSELF = 32 << 20
"""Bytes; how far glibc raises its threshold by itself, on a system of 64 bits."""

_WITHOUT_A_TYPE = ("defaultcpuallocator", "not enough memory", "out of memory", "alloc_failed")
"""What errors say for which torch has no type: a CPU's, page-locked memory, cuBLAS, cuDNN, CUDA graphs, Triton."""


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes that can be had on a device, and how many it has: a GPU, or main memory within this process's limits."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is left then are CUDA graphs, whose memory nothing else can have
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    limits = [(memory.available, memory.total), *_control_groups()]
    return min(left for left, _ in limits), min(allowed for _, allowed in limits)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on every platform, and only needed here

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Inside: the C library keeps what it frees, up to 2 GB; where it is not glibc, nothing changes.

    By default a large tensor's memory goes back to the system when it is freed and comes back zeroed, page by page:
    in an iteration that allocates and frees the same activations again, up to two fifths of the time.

    What was set before cannot be read. After the scope it is what glibc comes to by itself in a process with tensors
    of that size, and what was kept is returned.
    """
    _set_thresholds(_FOR_LARGE_TENSORS, (1 << 31) - 1)
    try:
        yield
    finally:
        _set_thresholds(_LARGEST_BY_ITSELF, 2 * _LARGEST_BY_ITSELF)
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return to the system what the C library keeps; where it is not glibc, do nothing.

    Between one unit and the next: blocks of other sizes come then, and would not fit the gaps.
    """
    if (malloc_trim := _of_c_library("malloc_trim")) is not None:
        malloc_trim(0)


def _set_thresholds(mmap: int, trim: int) -> None:
    """From how many bytes a block is of the system's, and how many at the end of the others are kept when free."""
    if (mallopt := _of_c_library("mallopt")) is not None:
        if not mallopt(_M_MMAP_THRESHOLD, mmap):
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_BY_ITSELF)  # all that older versions of glibc take
        mallopt(_M_TRIM_THRESHOLD, trim)


def _of_c_library(name: str) -> Callable[..., object] | None:
    """A function of the C library; None if it has none of that name, or the system is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, on a GPU or not, ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WITHOUT_A_TYPE)


def _control_groups() -> Iterator[tuple[int, int]]:
    """Bytes left and allowed in each control group that this process is in and that has a limit."""
    lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines() if MEMBERSHIP.exists() else []
    for line in lines:
        if line.startswith("0::/"):
            inside = Path(line.removeprefix("0::/"))
            for group in (inside, *inside.parents):
                yield from _limit(CGROUPS / group)


def _limit(group: Path) -> Iterator[tuple[int, int]]:
    """Bytes left, counting file pages that would make room, and allowed in one group; nothing without a limit."""
    try:
        allowed = (group / "memory.max").read_text(encoding="utf-8").strip()
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    except OSError:
        return
    if allowed != "max":
        yield int(allowed) - used + int(stat["inactive_file"]), int(allowed)
