"""Every benchmark from its command line, as `--quick` runs it; none of its times matter here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from real_data import real_folder

ROOT = Path(__file__).parents[2]
CIFAR = ("cifar10", "cifar10/weights/resnet20.safetensors")
IMAGENET = ("imagenet", "imagenet/weights/mobilenetv2.safetensors")
DATA = {
    "fidelity": CIFAR,
    "iterations": CIFAR,
    "iterations_mobilenetv2": IMAGENET,
    "iterations_mobilenetv2_112": IMAGENET,
}
"""Data and weights, below QDROP_DATA, of those that need them."""


def real_data(name):
    """The arguments that name the data of a benchmark."""
    if name not in DATA:
        return []
    data, weights = (real_folder() / path for path in DATA[name])
    return ["--data", str(data), "--weights", str(weights)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["calibration", "depth", "end_to_end", "inference", "memory", "step", "threads", *DATA]
)
def test_quick(name, tmp_path):
    if name == "inference":
        pytest.importorskip("onnxruntime")
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--threads", "1", "--json", str(file)]
    done = subprocess.run([*command, *real_data(name)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert record["quick"] and record["machine"]["packages"]["torch"]
    assert record["figures"] and all(math.isfinite(value) for value in record["figures"].values())
    assert record["tables"][0]["rows"]
