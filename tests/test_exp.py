"""The experiments: every config says what its folder promises, every run.sh works from anywhere."""

import functools
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from qdrop.config_io import load_config
from qdrop.models import build_model
from qdrop.quantization.graph import trace
from qdrop.quantization.plan import make_plan
from qdrop.quantization.spec import Kind

EXP = Path(__file__).parents[1] / "exp"
BITS = {"w4a4": (4, 4), "w2a4": (2, 4), "w3a3": (3, 3), "w2a2": (2, 2)}
IMAGENET = {  # folder: model type, rounding weight
    "res18": ("resnet18", 0.01),
    "res50": ("resnet50", 0.01),
    "mnv2": ("mobilenetv2", 0.1),
    "reg600m": ("regnetx_600m", 0.01),
    "reg3200m": ("regnetx_3200m", 0.01),
    "mnasx2": ("mnasnet", 0.2),
}
CIFAR10 = ("resnet20", "resnet56")
FOLDERS = [f"{bits}/{arch}" for bits in BITS for arch in IMAGENET] + [
    f"cifar10/{arch}/{bits}" for arch in CIFAR10 for bits in BITS
]


@pytest.mark.parametrize("arch", IMAGENET)
@pytest.mark.parametrize("bits", BITS)
def test_imagenet_configs(bits, arch):
    config = load_config(EXP / bits / arch / "config.yaml")
    recon = config.quant.recon
    assert (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit) == BITS[bits]
    assert (config.model.type, recon.weight) == IMAGENET[arch]
    assert (config.quant.first_w_bit, config.quant.last_w_bit, config.quant.last_a_bit) == (8, 8, 8)
    assert (recon.iters, recon.batch_size, recon.drop_prob, recon.granularity) == (20000, 32, 0.5, "block")
    assert (config.quant.calibrate, config.quant.calibrate_range) == (1024, 256)
    assert (config.data.type, config.data.input_size, config.data.augment) == ("imagenet", 224, True)


@pytest.mark.parametrize("arch", CIFAR10)
@pytest.mark.parametrize("bits", BITS)
def test_cifar10_configs(bits, arch):
    config = load_config(EXP / "cifar10" / arch / bits / "config.yaml")
    assert (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit) == BITS[bits]
    assert (config.model.type, config.quant.recon.weight, config.quant.recon.iters) == (arch, 0.01, 1000)
    data = config.data
    assert (data.type, data.input_size, data.test_resize, data.augment) == ("cifar10", 32, 32, False)


def test_every_config_of_the_tree_parses():
    found = sorted(EXP.rglob("*.yaml"))
    assert {EXP / folder / "config.yaml" for folder in FOLDERS} <= set(found)
    for path in found:
        load_config(path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_config_states_only_what_differs(folder):
    stated = yaml.safe_load((EXP / folder / "config.yaml").read_text())
    assert stated.keys() == {"base", "quant", "model"}
    assert stated["quant"].keys() <= {"a_qconfig", "w_qconfig", "recon"}
    assert stated["model"].keys() == {"type"}


def test_run_scripts_are_one_and_executable():
    scripts = [EXP / folder / "run.sh" for folder in FOLDERS]
    assert len({script.read_bytes() for script in scripts}) == 1
    assert all(os.access(script, os.X_OK) for script in scripts)


def run(script, python, cwd, *args):
    """Runs a script with this program as its python."""
    python.chmod(0o755)
    return subprocess.run(
        ["bash", script, *args],
        cwd=cwd,
        env={**os.environ, "QDROP_PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("folder", ["w2a4/res18", "cifar10/resnet20/w2a2"])
def test_run_script_from_another_directory(tmp_path, folder):
    python = tmp_path / "py thon"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit $((7 * ($# > 2)))\n')
    args = ["data.path=/a b", "model.kwargs={a: 1}"]
    for script in (EXP / folder / "run.sh", os.path.relpath(EXP / folder / "run.sh", tmp_path)):
        done = run(script, python, tmp_path, *args)
        assert done.stdout.splitlines() == [
            *("-m", "qdrop.solver.main_imagenet"),
            *("--config", str(EXP / folder / "config.yaml")),
            *args,
        ]
        assert done.returncode == 7


def test_run_script_tells_how_to_install(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    done = run(EXP / "cifar10/resnet20/w2a2/run.sh", python, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"{python} cannot import qdrop; install it first: pip install -e {EXP.parent}\n"


def test_the_quickstart_tells_what_is_wrong_with_an_interpreter(tmp_path):
    script = EXP / "quickstart" / "run.sh"
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    done = run(script, python, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{python} cannot import torch or qdrop; install both first: ")
    python.unlink()
    python = tmp_path / "nowhere"
    environment = {**os.environ, "QDROP_PYTHON": str(python), "CDPATH": f".:{tmp_path}"}  # which makes `cd` print
    command = ["bash", "exp/quickstart/run.sh"]
    done = subprocess.run(command, cwd=EXP.parent, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"QDROP_PYTHON={python}: there is no such program.\n")


@functools.cache
def graph_of(model_type, size):
    """The traced network; its weights do not matter here."""
    return trace(build_model(model_type), torch.zeros(2, 3, size, size))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_config_builds_its_model_and_plan(folder):
    config = load_config(EXP / folder / "config.yaml")
    plan = make_plan(graph_of(config.model.type, min(config.data.input_size, 64)), config.quant)
    inner = [spec for spec in plan.quantizers if spec.bit != 8]
    assert {spec.bit for spec in inner if spec.kind is Kind.WEIGHT} == {config.quant.w_qconfig.bit}
    assert {spec.bit for spec in inner if spec.kind is Kind.ACTIVATION} == {config.quant.a_qconfig.bit}
    assert [spec.kind for spec in plan.quantizers if spec.bit == 8] == [Kind.WEIGHT, Kind.ACTIVATION, Kind.WEIGHT]
    assert sum(unit.weights for unit in plan.units) == sum(spec.kind is Kind.WEIGHT for spec in plan.quantizers)
    assert plan.notes == ()
