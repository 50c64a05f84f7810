import pytest
import torch
from networks import bits, images, network
from onnx_runs import run

import qdrop
from qdrop.export.__main__ import main


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
