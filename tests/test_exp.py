"""The experiments: every config says what its folder promises, every run.sh works from anywhere."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from qdrop.config import load_config
from qdrop.config.methods import method_of
from qdrop.graph.capture import capture
from qdrop.graph.plan import make_plan
from qdrop.models import build_model
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
COCO = {
    "frcnn_r50": "faster_rcnn_r50_fpn",
    "frcnn_r101": "faster_rcnn_r101_fpn",
    "retinanet_r50": "retinanet_r50_fpn",
    "retinanet_r101": "retinanet_r101_fpn",
}
DETECTORS = [f"coco/{name}/{bits}" for name in COCO for bits in ("w4a4", "w2a4")]
DETECTORS += [f"coco/yolo_fastestv2/{bits}" for bits in ("w8a8", "w4a4", "w3a3", "w2a4")]
FOLDERS = [f"{bits}/{arch}" for bits in BITS for arch in IMAGENET] + [
    *(f"cifar10/{arch}/{bits}" for arch in CIFAR10 for bits in BITS),
    "imagenet/efficientnet_lite0/w4a4",
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
    assert (config.model.type, config.quant.recon.weight, config.quant.recon.iters) == (arch, 0.01, 400)
    assert method_of(config.quant) == "qdrop-e2e" and config.quant.network.iters == 800
    data = config.data
    assert (data.type, data.input_size, data.test_resize, data.augment) == ("cifar10", 32, 32, False)


def test_efficientnet_lite0():
    config = load_config(EXP / "imagenet" / "efficientnet_lite0" / "w4a4" / "config.yaml")
    assert config.model.type == "timm:tf_efficientnet_lite0" and method_of(config.quant) == "qdrop-e2e"
    assert (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit, config.quant.recon.iters) == (4, 4, 400)


@pytest.mark.parametrize("folder", DETECTORS)
def test_coco_configs(folder):
    config = load_config(EXP / folder / "config.yaml")
    _, name, bits = folder.split("/")
    assert (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit) == {"w8a8": (8, 8), **BITS}[bits]
    assert (config.model.type, config.data.type) == (COCO.get(name, name), "coco")
    recon, quant = config.quant.recon, config.quant
    if name in COCO:  # as published
        assert (recon.iters, recon.batch_size, recon.weight, recon.drop_prob) == (20000, 2, 0.01, 0.5)
        assert (quant.calibrate, quant.calibrate_range, quant.calibrate_batch) == (256, 256, 2)
        assert (quant.first_w_bit, quant.last_w_bit, quant.last_a_bit) == (8, None, None)
        assert (quant.placement, quant.divide, config.data.augment) == ("units", ["neck"], True)


def test_every_config_of_the_tree_parses():
    found = sorted(EXP.rglob("*.yaml"))
    assert {EXP / folder / "config.yaml" for folder in (*FOLDERS, *DETECTORS)} <= set(found)
    for path in found:
        load_config(path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_config_states_only_what_differs(folder):
    stated = yaml.safe_load((EXP / folder / "config.yaml").read_text())
    assert stated.keys() == {"base", "quant", "model"}
    assert stated["quant"].keys() <= {"a_qconfig", "w_qconfig", "recon"}
    assert stated["model"].keys() == {"type"}


def test_run_scripts_are_one_and_executable():
    scripts = [EXP / folder / "run.sh" for folder in (*FOLDERS, *DETECTORS)]
    assert len({script.read_bytes() for script in scripts}) == 1
    assert all(os.access(script, os.X_OK) for script in scripts)


def run(script, python, cwd, *args, shell="bash"):
    """Runs a script with this program as its python."""
    python.chmod(0o755)
    return subprocess.run(
        [shell, script, *args],
        cwd=cwd,
        env={**os.environ, "QDROP_PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


FOREIGN = [("w2a4/res18", "quantize"), ("cifar10/resnet20/w2a2", "quantize"), ("quickstart", "compare")]


@pytest.mark.parametrize(("folder", "command"), FOREIGN)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_run_script_from_another_directory(tmp_path, folder, command, shell):
    python = tmp_path / "py thon"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit $((7 * ($# > 2)))\n')
    args = ["data.path=/a b", "model.kwargs={a: 1}"]
    for script in (EXP / folder / "run.sh", os.path.relpath(EXP / folder / "run.sh", tmp_path)):
        done = run(script, python, tmp_path, *args, shell=shell)
        assert done.stdout.splitlines() == [
            "-m",
            "qdrop",
            command,
            "--config",
            str(EXP / folder / "config.yaml"),
            *args,
        ]
        assert done.returncode == 7


@pytest.mark.parametrize(("folder", "command"), FOREIGN)
def test_run_script_tells_what_is_wrong_with_an_interpreter(tmp_path, folder, command):
    script = EXP / folder / "run.sh"
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    done = run(script, python, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{python} cannot import torch or qdrop; install both first: {python} -m pip install -e {EXP.parent}\n"
    )
    python.unlink()
    python = tmp_path / "nowhere"
    environment = {**os.environ, "QDROP_PYTHON": str(python), "CDPATH": f".:{tmp_path}"}  # which makes `cd` print
    command = ["bash", f"exp/{folder}/run.sh"]
    done = subprocess.run(command, cwd=EXP.parent, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"QDROP_PYTHON={python}: there is no such program.\n")


@pytest.fixture
def bare(tmp_path):
    """The scripts and configs in a folder of their own, and a PATH with the shell's tools and no python."""
    shutil.copytree(EXP, tmp_path / "home" / "exp")
    for name in ("python_env.sh", "requirements.txt"):
        shutil.copy(EXP.parent / name, tmp_path / "home")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "cut", "dirname", "touch", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    return tmp_path / "home", tools


def start(home, tools, folder="w2a4/res18", **environment):
    command = [tools / "bash", home / "exp" / folder / "run.sh", "data.path=/data"]
    return subprocess.run(command, env={"PATH": str(tools), **environment}, capture_output=True, text=True, check=False)


def test_without_any_python_it_says_what_to_install(bare):
    home, tools = bare
    done = start(home, tools)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("There is no python3 here: install Python 3.11 or newer")
    assert not (home / ".venv").exists()


MAKES_ENVIRONMENTS = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exit 0
mkdir=$(dirname "$0")/mkdir
"$mkdir" -p "$3/bin" && cat "$(dirname "$0")/inner" > "$3/bin/python" && "$(dirname "$0")/chmod" +x "$3/bin/python"
"""
RECORDS = '#!/bin/sh\necho "$@" >> "{log}"\n[ "$2" != pip ] || exit {pip}\n'


@pytest.mark.parametrize("active", [False, True])
def test_it_makes_an_environment_once_and_runs_in_it(bare, active, tmp_path):
    home, tools = bare
    for name in ("mkdir", "chmod"):
        (tools / name).symlink_to(shutil.which(name))
    log = tmp_path / "log"
    (tools / "inner").write_text(RECORDS.format(log=log, pip=0))
    (tools / "python3").write_text(MAKES_ENVIRONMENTS)
    (tools / "python3").chmod(0o755)
    mine = {"VIRTUAL_ENV": str(tmp_path / "mine")} if active else {}
    for _ in range(2):
        assert start(home, tools, **mine).returncode == 0
    env = tmp_path / "mine" if active else home / ".venv"
    assert (env / "bin" / "python").exists() and (home / ".venv").exists() != active
    quantize = f"-m qdrop quantize --config {home}/exp/w2a4/res18/config.yaml data.path=/data"
    lines = log.read_text().splitlines()
    assert [line.split()[:3] for line in lines[:2]] == 2 * [["-m", "pip", "install"]]
    assert lines[2:] == [quantize, quantize]


def test_an_installation_that_fails_is_told_and_tried_again(bare, tmp_path):
    home, tools = bare
    for name in ("mkdir", "chmod"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "inner").write_text(RECORDS.format(log=tmp_path / "log", pip=1))
    (tools / "python3").write_text(MAKES_ENVIRONMENTS)
    (tools / "python3").chmod(0o755)
    for attempt in (1, 2):
        done = start(home, tools)
        assert done.returncode == 1 and "could not be installed" in done.stderr
        assert len((tmp_path / "log").read_text().splitlines()) == attempt


@functools.cache
def graph_of(model_type, size):
    """The captured network; its weights do not matter here."""
    return capture(build_model(model_type), torch.zeros(2, 3, size, size))


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
