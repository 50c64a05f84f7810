"""Every benchmark on something tiny; none of its times matter here."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace

import psutil
import pytest
import torch

from benchmarks import calibration, depth, end_to_end, memory, threads, timing
from benchmarks.common import HERE

CPU = torch.device("cpu")
SHARED = (
    "__init__", "common", "coverage", "coverage_case", "plain_step", "plots", "records", "report", "study",
    "thread_cases", "timing", "whole_run",
)  # fmt: skip
NAMES = sorted(file.stem for file in HERE.glob("*.py") if file.stem not in SHARED)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert all(word in text for word in ("--quick", "--threads N", "--json FILE", f"python -m benchmarks.{name}"))


# ---- calibration ----


def small_cases():
    values = torch.randn(4, 8, 40, 40, generator=torch.Generator().manual_seed(0))
    return [
        calibration.Case("activation after ReLU", values.clamp(min=0), -1, one_sided=True),
        calibration.Case("activation of both signs", values, -1, one_sided=False),
        calibration.Case("weight", values.view(4, 8, -1), 0, one_sided=False),
    ]


@pytest.mark.parametrize("bit", [2, 4])
@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_calibration(case, bit):
    found = calibration.find(case, bit, rounds=1)
    assert -1e-3 <= found.excess < 0.5
    assert found.cells[3] == f"{100 if case.one_sided else 100 * 2**bit:,}"
    assert found.figures[f"{case.name.replace(' ', '_').lower()}.{bit}_bit.speedup"] == found.speedup > 0


def test_a_worse_range_is_seen():
    case = small_cases()[1]
    low, high = calibration.search(case, 4)
    assert calibration.excess(case, 4, (low * 1.5, high * 1.5)) > 10


# ---- depth ----


def test_depth_is_linear_in_work():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = {layers: depth.find(layers, images, 1, CPU) for layers in (8, 14)}
    for layers, finding in found.items():
        assert finding.passes == pytest.approx(3, abs=0.01) and finding.units == 2 + (layers - 2) // 2
    assert found[14].quadratic_passes > 1.4 * found[8].quadratic_passes
    assert depth.draw(list(found.values()), 2).axes


def test_the_quadratic_way_brings_the_same_values():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = depth.network(8, images, CPU)
    with torch.no_grad():
        out = depth.run(net.parts, images, quantized=False)
        torch.testing.assert_close(out[net.parts[-1].outputs[0]], net.model(images), rtol=1e-5, atol=1e-5)


# ---- memory ----


def test_memory(monkeypatch):
    """The command a setting is measured by, and what it prints; the setting itself is not run here."""
    seen = []

    def fake(command, **kwargs):
        seen.append(command)
        figures = {"peak_mb": 3000.0, "anonymous_mb": 2000.0, "seconds": 1.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(figures), "")

    monkeypatch.setattr(timing.subprocess, "run", fake)
    args = memory.parser().parse_args(["--quick"])
    args.device = CPU
    outcome = memory.measure(args)
    assert outcome.figures["resnet50.disk_float32.peak_mb"] == 3000.0
    assert [row[:4] for row in outcome.tables[0].rows][-1] == ("resnet50", "disk", "float32", "3.00")
    worker = memory.parser().parse_args(seen[-1][3:])
    assert (worker.networks, worker.caches, worker.images, worker.worker) == (["resnet50"], ["disk/float32"], 64, True)


def test_a_failed_setting_says_why(monkeypatch):
    monkeypatch.setattr(
        timing.subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", "no memory")
    )
    with pytest.raises(RuntimeError, match="resnet18 with cpu/float32 failed: no memory"):
        memory.in_a_process("resnet18", "cpu/float32", 1, Namespace(units=1, threads=1, device=CPU))


def test_a_place_that_does_not_exist():
    with pytest.raises(SystemExit, match="tape is none of auto, gpu, cpu, disk"):
        memory._cache("tape", "float32")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_is_seen():
    with memory.anonymous_memory() as samples:
        block = torch.ones(64 << 18)  # 64 MB
        for _ in range(100):
            block.add_(1)
    assert samples[0] > 60_000


# ---- a whole run ----


def test_goals_name_the_runs_that_reach_them():
    quick = {"calibration.seconds": 1.0, "reconstruction.seconds": 300.0, "peak_memory.mb": 1200.0}
    small = {"calibration.seconds": 3.5, "reconstruction.seconds": 900.0, "peak_memory.mb": 700.0}
    time, third, half = end_to_end.goals({"quick": quick, "small": small})
    assert time.endswith("under 3 s: reached by quick.") and third.endswith("time: reached by quick.")
    assert half.endswith("memory: reached by small.")
    assert end_to_end.goals({"quick": quick})[2].endswith("reached by none.")


# ---- threads ----


def test_cores_are_taken_for_as_long_as_they_are_measured():
    others = psutil.Process().children()
    with threads.taken(2):
        spinning = [child for child in psutil.Process().children() if child not in others]
        assert len(spinning) == 2 and all(child.is_running() for child in spinning)
    assert not any(child.is_running() for child in spinning)


def test_processes_that_take_cores_end_by_themselves():
    started = subprocess.Popen([sys.executable, "-c", threads.SPIN, "1", "3600"])  # another process than the parent
    assert started.wait(60) == 0


@pytest.mark.parametrize(("value", "words"), [(1.2, "Reached by all."), (1.3, "Reached by all but a network (1.30).")])
def test_the_goal_of_threads_in_words(value, words):
    assert threads.goal("busy", {"a quantizer": 0.7, "a network": value}).endswith(words)
