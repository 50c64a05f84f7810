"""The command line: every command on one short run of the digits network."""

import json
import runpy
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import setuptools
import torch

from qdrop.checkpoint import read
from qdrop.cli import COMMANDS, main
from qdrop.container import read_container

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "exp" / "quickstart" / "config.yaml"
SHORT = ["quant.recon.iters=4", "quant.calibrate=64", "quant.calibrate_range=64", "data.val_limit=200"]


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
    assert (name, float(top1), data) == (str(folder / file), pytest.approx(recorded, abs=2), "handwritten digits\n")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_is_read_once(command, folder, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr("qdrop.checkpoint.read_container", lambda *args: reads.append(args) or read_container(*args))
    extra = ["data.val_limit=1"] if command == "evaluate" else ["--out", str(tmp_path / "model.onnx")]
    assert main([command, str(folder / FILES[0]), *extra]) == 0
    assert len(reads) == 1


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_evaluate_computes_in_the_precision_of_the_run(precision, folder, monkeypatch):
    seen = []

    def accuracy(*args):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return 50.0

    monkeypatch.setattr("qdrop.solver.evaluate.accuracy", accuracy)
    assert main(["evaluate", str(folder / FILES[0]), f"quant.recon.precision={precision}"]) == 0
    assert seen == [(precision == "tf32",) * 2]


def test_evaluate_with_other_settings(folder, capsys):
    assert main(["evaluate", str(folder / FILES[0]), "data.val_limit=1", "data.name=one digit"]) == 0
    assert capsys.readouterr().out.endswith(("top-1 100.00 on one digit\n", "top-1 0.00 on one digit\n"))


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
    pytest.importorskip("onnx")
    if name.startswith("foreign"):
        (tmp_path / name).write_bytes(b"\x08\xff something else")
    assert main([command, str(tmp_path / name)]) == 1
    assert "error: " in caplog.text and name in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_memory_that_runs_out_while_a_file_is_read(command, folder, monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("qdrop.checkpoint.read_container", fails)
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


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["quantise"])
    assert caught.value.code == 2 and "quantise" in capsys.readouterr().err


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
