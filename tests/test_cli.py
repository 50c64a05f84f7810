"""The command line: every command on one short run of the digits network."""

import contextlib
import json
import operator
import runpy
import shutil
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import setuptools
import torch
from PIL import Image

import qdrop
from qdrop.checkpoint import load, read, save
from qdrop.checkpoint.container import read_container
from qdrop.cli import COMMANDS, main
from qdrop.commands.evaluate import ALWAYS, TORCH
from qdrop.config import Config, QuantConfig, ReconConfig
from qdrop.registry import TASKS

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "exp" / "quickstart" / "config.yaml"
SHORT = [
    "quant.recon.iters=4",
    "quant.calibrate=64",
    "quant.calibrate_range=64",
    "data.val_limit=200",
    "quant.method=qdrop",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder, with its checkpoint and both ONNX files."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("run")
    assert main(["quantize", "--config", str(CONFIG), *SHORT, f"process.out={out}"]) == 0
    for container in ("native", "int8"):
        assert main(["export", str(out), "--container", container]) == 0
    return out


FILES = ["quantized.safetensors", "quantized-native.onnx", "quantized-int8.onnx"]


@pytest.mark.parametrize("file", FILES)
def test_evaluate_measures_what_the_run_measured(folder, file, capsys):
    assert main(["evaluate", str(folder / file)]) == 0
    name, _, shown = capsys.readouterr().out.partition(": top-1 ")
    top1, _, data = shown.partition(" on ")
    recorded = json.loads((folder / "result.json").read_text())["top1"]
    # Integer kernels round otherwise where a value lies between two levels: of 200 digits a few may differ.
    assert (name, float(top1), data) == (
        str(folder / file),
        pytest.approx(recorded, abs=2),
        "200 images of handwritten digits\n",
    )


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_a_run_folder_stands_for_its_checkpoint(command, folder, tmp_path, capsys):
    extra = {"export": ["--out", str(tmp_path / "model.onnx")], "evaluate": ["data.val_limit=1"], "inspect": []}
    assert main([command, str(folder), *extra[command]]) == 0


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_a_file_of_another_kind_is_named_with_those_that_are_taken(command, tmp_path, caplog):
    torch.save({}, tmp_path / "weights.safetensors")
    assert main([command, str(tmp_path / "weights.safetensors")]) == 1
    assert "an archive as torch.save" in caplog.text and "expected a packed checkpoint" in caplog.text


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_onnx_under_any_name(command, folder, tmp_path):
    shutil.copy(folder / "quantized-int8.onnx", tmp_path / "model")
    assert main([command, str(tmp_path / "model")]) == 0


def onnx_with(folder, path, change):
    """A copy of the run's ONNX file, changed."""
    model = onnx.load(folder / "quantized-native.onnx")
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("size", [1, 7, 300])
def test_evaluate_a_file_that_fixes_the_size_of_its_batch(size, folder, tmp_path, capsys):
    def fix(model):
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = size

    shown = []
    for path in (folder / "quantized-native.onnx", onnx_with(folder, tmp_path / "fixed.onnx", fix)):
        assert main(["evaluate", str(path), "data.val_limit=20"]) == 0
        shown.append(capsys.readouterr().out.partition(": ")[2])
    assert shown[0] == shown[1]


def test_evaluate_a_file_that_runs_with_one_size_of_batch_without_saying_so(folder, tmp_path, caplog):
    def freeze(model):
        for node in model.graph.node:
            if node.op_type == "Reshape":
                shape = onnx.numpy_helper.from_array(np.array([1, 16]), "frozen")
                model.graph.initializer.append(shape)
                node.input[1] = "frozen"

    path = onnx_with(folder, tmp_path / "frozen.onnx", freeze)
    assert main(["evaluate", str(path), "data.val_limit=20"]) == 1
    assert "frozen.onnx: ONNX Runtime cannot run it on 20x1x8x8" in caplog.text


def test_evaluate_without_the_tensors_beside_the_file(folder, tmp_path, caplog):
    def move(model):
        bias = next(t for t in model.graph.initializer if t.name == "fc.bias")
        bias.ClearField("raw_data")
        bias.data_location = onnx.TensorProto.EXTERNAL
        bias.external_data.add(key="location", value="absent.bin")

    assert main(["evaluate", str(onnx_with(folder, tmp_path / "m.onnx", move))]) == 1
    (record,) = caplog.records
    assert "error: " in record.message and "m.onnx" in record.message and "absent.bin" in record.message


@pytest.mark.parametrize(
    ("file", "extra", "named"),
    [
        ("quantized.safetensors", ["--data", "/data"], "data.path"),
        ("quantized.safetensors", ["quant.w_qconfig.bit=8"], "quant.w_qconfig.bit"),
        ("quantized.safetensors", ["data.val_limit=1", "data.augment=true", "process.seed=1"], "data.augment, process"),
        ("quantized-int8.onnx", ["process.device=cpu"], "process.device"),
    ],
)
def test_settings_without_effect_are_refused(file, extra, named, folder, caplog):
    assert main(["evaluate", str(folder / file), *extra]) == 1
    assert f"error: command line: {named}" in caplog.text and "data.batch_size" in caplog.text


@pytest.mark.parametrize("kind", TASKS)
def test_the_settings_of_an_evaluation_are_settings(kind):
    config = Config(quant=QuantConfig(recon=ReconConfig()))
    for key in [*ALWAYS, *TORCH, *TASKS[kind].settings(kind)]:
        operator.attrgetter(key)(config)


def test_a_file_without_settings_is_evaluated_with_a_notice(folder, tmp_path, caplog):
    save(load(folder / FILES[0]), tmp_path / "q")
    assert main(["evaluate", str(tmp_path / "q")]) == 1  # ImageNet, which is not here
    assert "q records no settings; used are data.type=imagenet data.path=" in caplog.text
    caplog.clear()
    assert main(["evaluate", str(tmp_path / "q"), "data.type=digits", "data.val_limit=1", "data.num_workers=0"]) == 0
    assert "used are data.type=digits" in caplog.text


@pytest.mark.parametrize("recorded", [{"quant": 5}, {"w_qconfig": {"bit": 2}}])
def test_settings_that_are_not_those_of_a_run_are_left_aside(recorded, folder, tmp_path, caplog, capsys):
    save(load(folder / FILES[0]), tmp_path / "q", recorded)
    settings = ["data.type=digits", "data.val_limit=7", "data.num_workers=0"]
    assert main(["evaluate", str(tmp_path / "q"), *settings]) == 0
    assert "q: what it records are not the settings of a run" in caplog.text
    assert capsys.readouterr().out.endswith(" on 7 images of digits\n")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_is_read_once(command, folder, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "qdrop.checkpoint.file.read_container", lambda *args: reads.append(args) or read_container(*args)
    )
    extra = ["data.val_limit=1"] if command == "evaluate" else ["--out", str(tmp_path / "model.onnx")]
    assert main([command, str(folder / FILES[0]), *extra]) == 0
    assert len(reads) == 1


def test_evaluate_computes_in_float32_as_the_run_did(folder, monkeypatch):
    seen = []

    def accuracy(*args):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return 50.0

    monkeypatch.setattr("qdrop.tasks.classification.task.accuracy", accuracy)
    assert main(["evaluate", str(folder / FILES[0])]) == 0
    assert seen == [(False, False)]


@pytest.mark.parametrize("place", ["2012", "/data: 2", "/data #2", "null", "~no-such-user/data"])
def test_a_folder_is_taken_as_it_is_written(place, folder, caplog):
    assert main(["evaluate", str(folder / FILES[0]), "--data", place, "data.type=cifar10"]) == 1
    assert f"no folder {place} (it is data.path)" in caplog.text or f"no such home folder: '{place}'" in caplog.text


def test_evaluate_with_other_settings(folder, capsys):
    assert main(["evaluate", str(folder / FILES[0]), "data.val_limit=1", "data.name=one digit"]) == 0
    assert capsys.readouterr().out.endswith(
        ("top-1 100.00 on 1 images of one digit\n", "top-1 0.00 on 1 images of one digit\n")
    )


@pytest.fixture(scope="module")
def cifar_run(tmp_path_factory):
    """A folder with the data `photos` and the run `run`, started there with a relative path to the data."""
    place = tmp_path_factory.mktemp("cifar")
    for index in range(20):
        folder = place / "photos" / ("train" if index < 10 else "val") / str(index % 10)
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (index * 12, 80, 200 - index * 9)).save(folder / "0.png")
    settings = "quant.recon=null quant.calibrate=8 data.path=photos data.num_workers=0 model.path=null"
    with contextlib.chdir(place):
        config = str(ROOT / "exp" / "cifar10" / "resnet20" / "w4a4" / "config.yaml")
        assert main(["quantize", "--config", config, *settings.split(), "process.out=run"]) == 0
    return place


def test_evaluate_finds_the_data_of_its_run(cifar_run, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)  # the run's path was relative to where it was started
    for name in ("", "quantized.safetensors"):
        capsys.readouterr()
        assert main(["evaluate", str(cifar_run / "run" / name), "data.num_workers=0"]) == 0
        assert capsys.readouterr().out.endswith("on 10 images of CIFAR-10\n")
    assert main(["evaluate", str(cifar_run / "run"), "--data", "elsewhere"]) == 1
    assert "no folder elsewhere (it is data.path)" in caplog.text


def test_a_file_of_another_run_is_not_evaluated_on_the_data_of_the_folder(cifar_run, tmp_path, caplog):
    shutil.copytree(cifar_run / "run", tmp_path / "run")
    settings = (tmp_path / "run" / "config.resolved.yaml").read_text()
    (tmp_path / "run" / "config.resolved.yaml").write_text(settings.replace("path: photos", "path: /data/other"))
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "no folder photos (it is data.path)" in caplog.text


def test_inspect_a_checkpoint(folder, capsys):
    assert main(["inspect", str(folder / FILES[0])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    checkpoint = read(folder / FILES[0])
    size = (folder / FILES[0]).stat().st_size
    assert f"file {size:,} bytes; in float32" in shown
    assert f"units {len(checkpoint.plan.units)}" in shown
    assert f"top1 {checkpoint.metrics['top1']:.2f}" in shown
    assert all(spec.name in shown for spec in checkpoint.plan.quantizers)


def test_inspect_an_onnx_file(folder, capsys):
    assert main(["inspect", str(folder / "quantized-native.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "UINT2" in shown and "DequantizeLinear" in shown
    assert main(["inspect", str(folder / "quantized-int8.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "UINT2" not in shown and "UINT8" in shown


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
@pytest.mark.parametrize("name", ["absent.safetensors", "foreign.safetensors", "absent.onnx", "foreign.onnx"])
def test_files_that_cannot_be_read(command, name, tmp_path, caplog):
    if name.startswith("foreign"):
        (tmp_path / name).write_bytes(b"\x08\xff something else")
    assert main([command, str(tmp_path / name)]) == 1
    assert "error: " in caplog.text and name in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_memory_that_runs_out_while_a_file_is_read(command, folder, monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("qdrop.checkpoint.file.read_container", fails)
    assert main([command, str(folder / FILES[0])]) == 1
    assert "error: memory ran out" in caplog.text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_under_its_own_name(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: qdrop {command}")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown and what in shown for command, (_, what) in COMMANDS.items())


@pytest.mark.parametrize(("typed", "meant"), [("quantise", "quantize"), ("reprot", "report"), ("eval", "evaluate")])
def test_a_mistyped_command_is_told_with_the_one_that_was_meant(typed, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main([typed])
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and f"{typed}: no such command; did you mean {meant}?" in shown


def test_an_unknown_command_is_told_with_all_there_are(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["zzz"])
    assert caught.value.code == 2 and f"expected {' | '.join(COMMANDS)}" in capsys.readouterr().err


def test_an_interruption_while_torch_is_imported_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "quantize", ("interrupted_module", ""))
    handlers = []
    monkeypatch.setattr("qdrop.cli.signal.signal", lambda number, handler: handlers.append((number, handler)))
    assert main(["quantize"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert handlers == [(signal.SIGINT, signal.SIG_IGN)]  # a second one says nothing


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"qdrop {qdrop.__version__}\n"


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "qdrop", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"qdrop {qdrop.__version__}\n")


@pytest.fixture
def scripts(monkeypatch) -> list[EntryPoint]:
    """The commands that `pip install` makes, as setup.py declares them."""
    told = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: told.update(settings))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    names = [line.partition("=") for line in told["entry_points"]["console_scripts"]]
    return [EntryPoint(name, value, "console_scripts") for name, _, value in names]


def test_the_installed_command_runs(scripts, monkeypatch, capsys):
    (script,) = scripts
    assert script.name == "qdrop"
    monkeypatch.setattr("sys.argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as caught:
        script.load()()
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("usage: qdrop ")
