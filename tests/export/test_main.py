import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import bits, images, network
from onnx_runs import run

import qdrop
from qdrop.export.__main__ import main
from qdrop.export.onnx_file import settings, summary


@pytest.fixture
def folder(tmp_path):
    """A run folder with a packed checkpoint; the network is in it too, as an attribute of the test."""
    model, _ = qdrop.quantize(network("residual"), images(), bits(2, 4))
    qdrop.save(model, tmp_path / "quantized.safetensors")
    return tmp_path


def test_a_run_becomes_two_flavours_of_onnx(folder, capsys):
    expected = qdrop.load(folder / "quantized.safetensors")(images(3)).detach()
    for container in ("native", "int8"):
        assert main([str(folder), "--format", "onnx", "--container", container]) == 0
        path = folder / f"quantized-{container}.onnx"
        assert f"{path}: {path.stat().st_size:,} bytes" in capsys.readouterr().out
        assert torch.allclose(run(path, images(3), optimize=False), expected, atol=1e-5)


def test_a_file_becomes_a_program(folder):
    checkpoint = folder / "quantized.safetensors"
    assert main([str(checkpoint), "--format", "torch", "--out", str(folder / "model.pt2")]) == 0
    with torch.no_grad():
        out = torch.export.load(folder / "model.pt2").module()(images(3))
        assert torch.equal(out, qdrop.load(checkpoint)(images(3)))


@pytest.mark.parametrize("content, reason", [(None, "quantized.safetensors"), (b"nonsense", "error: ")])
def test_what_is_wrong_takes_one_line(tmp_path, caplog, content, reason):
    if content is not None:
        (tmp_path / "quantized.safetensors").write_bytes(content)
    assert main([str(tmp_path)]) == 1
    (record,) = caplog.records
    assert record.message.startswith("error: ") and reason in record.message


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_the_checkpoint_is_not_written_over(folder, caplog, monkeypatch, form):
    checkpoint = folder / "quantized.safetensors"
    before = checkpoint.read_bytes()
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(checkpoint)
    for out in (str(checkpoint), "quantized.safetensors", "link"):
        assert main([str(folder), "--format", form, "--out", out]) == 1
        assert f"{out}: the file to write is the checkpoint itself" in caplog.text
    assert checkpoint.read_bytes() == before and (folder / "link").is_symlink()


@pytest.mark.parametrize("out", ["absent/x.onnx", "taken"])
def test_a_target_that_cannot_be_written_is_known_before_the_work(folder, caplog, monkeypatch, out):
    (folder / "taken").mkdir()
    monkeypatch.setattr("qdrop.load", lambda path: pytest.fail("the network was loaded"))
    assert main([str(folder), "--out", str(folder / out)]) == 1
    (record,) = caplog.records
    assert Path(out).parts[0] in record.message and ".tmp" not in record.message


def test_a_container_is_of_onnx_only(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(folder), "--format", "torch", "--container", "int8"])
    assert caught.value.code == 2 and "--format torch has none" in capsys.readouterr().err


def test_settings_and_figures_go_along(folder):
    checkpoint = folder / "quantized.safetensors"
    qdrop.save(qdrop.load(checkpoint), checkpoint, {"process": {"seed": 3}}, {"top1": 71.5})
    assert main([str(folder)]) == 0
    path = folder / "quantized-native.onnx"
    assert settings(path) == {"process": {"seed": 3}} and summary(path).metrics == {"top1": 71.5}


WITHOUT_ONNX = "import sys; sys.modules['onnx'] = None; from qdrop.cli import main; sys.exit(main(sys.argv[1:]))"


def without_onnx(*args):
    return subprocess.run([sys.executable, "-c", WITHOUT_ONNX, "export", *args], capture_output=True, text=True)


def test_only_onnx_needs_the_package_onnx(folder):
    assert without_onnx("--help").returncode == 0
    assert without_onnx(str(folder), "--format", "torch").returncode == 0 and (folder / "quantized.pt2").exists()
    done = without_onnx(str(folder))
    assert done.returncode == 1 and done.stderr.startswith(
        "error: ONNX files need the package onnx, which is not installed: pip install 'qdrop[onnx]'"
    )
