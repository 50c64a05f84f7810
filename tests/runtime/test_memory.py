"""Free memory within the limits of a container or a job."""

import subprocess
import sys

import pytest
import torch

from qdrop.runtime import memory
from qdrop.runtime.memory import free_and_total, keeping_freed_memory

CPU = torch.device("cpu")


def group(folder, limit, used, files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")


@pytest.mark.parametrize(("limit", "expected"), [("max", []), ("1000", [(500, 1000)])])
def test_limit_of_a_group(limit, expected, tmp_path):
    group(tmp_path / "job", limit, 800, 300)
    assert list(memory._limit(tmp_path / "job")) == expected
    assert list(memory._limit(tmp_path / "none")) == []


def test_the_tightest_limit_counts(tmp_path, monkeypatch):
    """A process is in a group and in all groups around it."""
    own = tmp_path / "cgroup"
    own.write_text("1:name=other:/elsewhere\n0::/slurm/job\n")
    group(tmp_path / "slurm/job", 10_000, 1000, 100)
    group(tmp_path / "slurm", 5000, 4000, 0)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", own)
    assert free_and_total(CPU) == (1000, 5000)
    own.unlink()
    assert free_and_total(CPU)[1] > 10_000


def test_freed_memory_can_be_kept():
    """Other systems than Linux with glibc are left as they are."""
    with keeping_freed_memory():
        assert torch.ones(9).sum() == 9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_given_back():
    """In a process of its own, where nothing else allocates."""
    code = (
        "import psutil, torch\n"
        "from qdrop.runtime.memory import give_back_freed_memory, keeping_freed_memory\n"
        "held = lambda: psutil.Process().memory_info().rss >> 20\n"
        "fill = lambda: torch.ones(100 << 18).sum()\n"
        "torch.ones(1), psutil.Process()\n"
        "before = held()\n"
        "with keeping_freed_memory():\n"
        "    fill()\n"
        "    print(held() - before)\n"
        "    give_back_freed_memory()\n"
        "    print(held() - before)\n"
        "    fill()\n"
        "print(held() - before)\n"
        "fill()\n"
        "print(held() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    kept, *left = map(int, done.stdout.split())
    assert kept > 80 and len(left) == 3 and max(left) < 20, done
