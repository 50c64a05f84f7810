"""How much memory is free, and whether an error means that there was none left."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of a container or of a job (version 2 of its interface)."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Which of them this process is in."""


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes that can be had on a device, and how many it has: a GPU, or main memory within this process's limits."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    memory = psutil.virtual_memory()
    limits = [(memory.available, memory.total), *_control_groups()]
    return min(left for left, _ in limits), min(allowed for _, allowed in limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, on a GPU or not, ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU torch has no type for it, only these two texts.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("defaultcpuallocator" in text or "not enough memory" in text)


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
