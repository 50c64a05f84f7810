"""What `qdrop inspect` counts."""

import math
import sys

import pytest
import torch
from networks import network, quantized
from torch import nn

from qdrop.checkpoint import describe, save
from qdrop.commands.inspect import checkpoint_view, main, onnx_view, readable
from qdrop.export.onnx_file import OnnxFileError, settings, summary


class Scaled(nn.Module):
    """Its own parameters are called as those of quantizers, and as a packed weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.zero_point = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        return (self.layer(x) * self.scale + self.zero_point).mean((2, 3))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Scaled()

    def forward(self, x):
        return self.body(x)


def test_parameters_called_scale_are_counted():
    model, _ = quantized(Network().eval())
    floats = 4 * sum(math.prod(parameter.shape) for parameter in Network().parameters())
    _, totals = checkpoint_view(describe(model), 100)
    (shown,) = [cell for cell in totals.columns[1].cells if "in float32" in str(cell)]
    assert f"in float32 {floats:,}:" in str(shown)


@pytest.mark.parametrize("name", ["digits [val]", "[/val]", "[bold]x", ":smile:"])
def test_what_a_file_says_is_no_markup(name, tmp_path, capsys):
    model, _ = quantized(network("residual"))
    save(model, tmp_path / "q", metrics={"data": name, name: 1})
    assert main([str(tmp_path / "q")]) == 0
    assert capsys.readouterr().out.count(name) == 2


def test_what_would_steer_the_terminal_is_shown_as_its_escape(tmp_path, capsys):
    model, _ = quantized(network("residual"))
    save(model, tmp_path / "q", metrics={"data": "\x1b[2Jcaf\u00e9\n"})
    assert main([str(tmp_path / "q")]) == 0
    assert "\\x1b[2Jcaf\u00e9\\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (8, "8 B"), (999, "999 B"), (4608, "4.61 kB"), (23_592_960, "23.6 MB"), (102_000_000, "102 MB")],
)
def test_sizes(size, shown):
    assert readable(size) == shown


# ---- ONNX ----


def onnx_file(path, **changes):
    """A file with one matrix of 4-bit integers, one float matrix outside the file, and a bias."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    outside = types(name="outside", data_type=types.FLOAT, dims=[4, 2], data_location=types.EXTERNAL)
    outside.external_data.add(key="location", value="absent.bin")
    constants = [
        helper.make_tensor("inside", types.UINT4, [3, 4], [1] * 12),
        helper.make_tensor("scale", types.FLOAT, [], [0.5]),
        outside,
        helper.make_tensor("bias", types.FLOAT, [2], [0.0, 1.0]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["inside", "scale"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "outside", "bias"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, types.FLOAT, ["N", size]) for name, size in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("com.example", 30), helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets)
    helper.set_model_props(model, changes)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_file_is_told_by_layer(tmp_path):
    found = summary(onnx_file(tmp_path / "m"))
    assert [(t.name, t.dtype, t.bit, t.shape, t.nbytes) for t in found.weights] == [
        ("inside", "UINT4", 4, (3, 4), 6),
        ("outside", "FLOAT", 32, (4, 2), 32),
    ]
    assert {t.name for t in found.others} == {"scale", "bias"}
    assert list(found.opsets.items()) == [("ai.onnx", 21), ("com.example", 30)]
    rows, _, totals = onnx_view(found, 500)
    assert [str(cell) for cell in rows.columns[5].cells] == ["1/8", "1/1"]
    assert "20 in 38 bytes; in float32 80: 2.1 times as large" in map(str, totals.columns[1].cells)


def test_inspect_needs_no_tensors_beside_the_file(tmp_path, capsys):
    assert main([str(onnx_file(tmp_path / "m"))]) == 0
    assert "outside" in capsys.readouterr().out


def test_figures_recorded_in_an_onnx_file_are_shown(tmp_path, capsys):
    assert main([str(onnx_file(tmp_path / "m", **{"qdrop.metrics": '{"top1": 71.5}'}))]) == 0
    assert "top1, before export 71.50" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000])
def test_settings_that_are_none(text, tmp_path):
    path = onnx_file(tmp_path / "m", **{"qdrop.config": text})
    with pytest.raises(OnnxFileError, match=r"m: qdrop\.config in its metadata cannot be read"):
        settings(path)


@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"\x08\x0a\x12\x05q"])
def test_an_onnx_file_that_is_cut_off(content, tmp_path, caplog):
    pytest.importorskip("onnx")
    (tmp_path / "m.onnx").write_bytes(content)
    assert main([str(tmp_path / "m.onnx")]) == 1
    (record,) = caplog.records
    assert "m.onnx: " in record.message and ("not a whole ONNX" in record.message or "empty" in record.message)


def test_a_type_that_onnx_does_not_know(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file(tmp_path / "m"), load_external_data=False)
    model.graph.initializer[3].data_type = 99
    (tmp_path / "m").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match="bias has the unknown type 99"):
        summary(tmp_path / "m")


def test_inspect_without_the_package_onnx(tmp_path, monkeypatch, caplog):
    path = onnx_file(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([str(path)]) == 1
    assert "ONNX files need the package onnx, which is not installed: pip install 'qdrop[onnx]'" in caplog.text
