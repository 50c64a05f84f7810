"""The packed checkpoint: small, bit-identical, whole or refused, readable without the package."""

import base64
import importlib.util
import json
import math
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN_MODELS
from networks import NETWORKS, images, network, quantized
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import qdrop
from qdrop.checkpoint import (
    CheckpointError,
    describe,
    load,
    read,
    save,
    write,
)
from qdrop.checkpoint.container import checksum
from qdrop.config import ActivationQConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.graph.insert import quantized_weights
from qdrop.graph.split import segments
from qdrop.quantization.affine import MIN_SCALE
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver.recon import reconstruct

READER = Path(__file__).parents[2] / "docs" / "read_quantized.py"
MIN_MAX = "MinMaxObserver"
FAST = {"observer": MIN_MAX}


def quick(few, names):
    """All names, those that are not among the few as slow tests: a large network takes ten seconds."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in few)) for name in names]


def reader():
    spec = importlib.util.spec_from_file_location("read_quantized", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reader_without_a_file_tells_its_usage(tmp_path):
    for arguments in ([], [str(tmp_path / "nowhere.safetensors")]):
        done = subprocess.run([sys.executable, READER, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("usage: ")


def information(checkpoint):
    """Bytes that the contents take: the sum of bits, and the parts that stay as they are."""
    weights = [spec for spec in checkpoint.plan.quantizers if spec.kind == "weight"]
    rest = [value.nbytes for name, value in checkpoint.tensors.items() if not name.endswith(".packed")]
    return sum(spec.bit * math.prod(spec.shape) for spec in weights) / 8 + sum(rest)


def outputs(model, x):
    with torch.no_grad(), quantizing(model):
        return model(x)


def round_trip(model, path):
    save(model, path)
    return load(path)


def rewritten(path, **metadata):
    """Change the metadata of a file and make its checksum right again, as whoever forges one would."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    tensors = load_file(path)
    new = {k: v for k, v in (old | metadata).items() if k != "sha256"}
    save_file(tensors, path, new | {"sha256": checksum(new, tensors)})


def edit(path, part, change):
    """Change the JSON of the graph or the plan of a file, checksum made right."""
    with safe_open(path, "pt") as file:
        data = json.loads(zlib.decompress(base64.b64decode(file.metadata()[part])))
    change(data)
    rewritten(path, **{part: base64.b64encode(zlib.compress(json.dumps(data).encode())).decode()})


@pytest.fixture
def saved(tmp_path):
    model, _ = quantized(network("residual"))
    save(model, tmp_path / "q.safetensors", {"seed": 3}, {"top1": 71.5})
    return tmp_path / "q.safetensors"


# ---- the same network comes back ----


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_same_bit_for_bit(name, tmp_path):
    model, _ = quantized(network(name))
    loaded = round_trip(model, tmp_path / "q")
    assert torch.equal(loaded(images(5, seed=1)), outputs(model, images(5, seed=1)))


@pytest.mark.parametrize(
    "quantizer", ["AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQFakeQuantize", "LSQPlusFakeQuantize"]
)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ch_axis", [0, -1])
@pytest.mark.parametrize("bit", range(2, 9))
def test_every_kind_of_weight_quantizer(quantizer, symmetric, ch_axis, bit, tmp_path):
    weights = WeightQConfig(quantizer=quantizer, symmetric=symmetric, ch_axis=ch_axis, bit=bit, observer=MIN_MAX)
    config = QuantConfig(w_qconfig=weights, a_qconfig=None, first_w_bit=None, last_w_bit=None, recon=None)
    model, _ = quantized(network("residual"), config)
    if quantizer.startswith("LSQ"):
        with torch.no_grad():  # as if learned: scales off their start, zero points between integers
            for q in quantizers(model):
                q.scale.mul_(0.83)
                if quantizer == "LSQPlusFakeQuantize":
                    q.zero_point.add_(0.37)
                q.constrain()
    loaded = round_trip(model, tmp_path / "q")
    assert torch.equal(loaded(images()), outputs(model, images()))
    for found, expected in zip(quantized_weights(loaded), quantized_weights(model), strict=True):
        assert found.name == expected.name
        assert torch.equal(found.quantizer.integers(found.weight), expected.quantizer.integers(expected.weight))


@pytest.mark.parametrize("quantizer", ["FixedFakeQuantize", "LSQFakeQuantize", "LSQPlusFakeQuantize"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ch_axis", [1, -1])
def test_every_kind_of_activation_quantizer(quantizer, symmetric, ch_axis, tmp_path):
    activations = ActivationQConfig(quantizer=quantizer, symmetric=symmetric, ch_axis=ch_axis, bit=3)
    model, _ = quantized(network("squeeze"), QuantConfig(a_qconfig=activations))
    with torch.no_grad():
        for q in quantizers(model, "activation"):
            learned = q.param_groups()
            if learned.get("activation_scale"):
                q.scale.mul_(1.1)
            if learned.get("zero_point"):
                q.zero_point.add_(0.3)
    loaded = round_trip(model, tmp_path / "q")
    assert torch.equal(loaded(images()), outputs(model, images()))


def test_a_learned_zero_point_halfway_between_two_integers(tmp_path):
    weights = WeightQConfig(quantizer="LSQPlusFakeQuantize", bit=4, observer=MIN_MAX)
    model, _ = quantized(network("residual"), QuantConfig(w_qconfig=weights, recon=None))
    with torch.no_grad():
        for q in quantizers(model, "weight"):
            q.zero_point.copy_(q.zero_point.round().clamp(1, 14) + 0.5)
    loaded = round_trip(model, tmp_path / "q")
    assert torch.equal(loaded(images()), outputs(model, images()))
    with quantizing(loaded, weights=False):  # its float weights are the quantized ones
        assert torch.equal(loaded(images()), outputs(model, images()))


def test_learned_rounding_and_scales(tmp_path):
    model, plan = quantized(network("residual"))
    nearest = {q.spec.name: q.rounding.levels.clone() for q in quantizers(model, Kind.WEIGHT)}
    recon = ReconConfig(batch_size=4, iters=60, round_lr=0.05, scale_lr=1e-3)
    assert len(list(reconstruct(model, plan, {"x": images()}, recon, 0, torch.device("cpu")))) == len(plan.units)
    learned = {q.spec.name: q.rounding.levels for q in quantizers(model, Kind.WEIGHT)}
    assert any(not torch.equal(learned[name], nearest[name]) for name in nearest)
    loaded = round_trip(model, tmp_path / "q")
    assert torch.equal(loaded(images()), outputs(model, images()))
    assert all(torch.equal(q.rounding.levels, learned[q.spec.name]) for q in quantizers(loaded, Kind.WEIGHT))


@pytest.mark.parametrize("name", quick(("resnet18", "mobilenetv2"), GOLDEN_MODELS.values()))
def test_the_six_networks_within_two_percent_of_their_information(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    model, _ = qdrop.quantize(
        qdrop.build_model(name), x, {"w_qconfig": {"bit": 2} | FAST, "a_qconfig": FAST, "recon": None}
    )
    loaded = round_trip(model, tmp_path / "q")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    size = (tmp_path / "q").stat().st_size
    assert information(read(tmp_path / "q")) < size < 1.02 * information(read(tmp_path / "q"))
    if name == "resnet18":
        assert 3.3e6 < size < 3.45e6


@pytest.mark.parametrize(
    "name",
    quick(
        ("timm:mobilenetv3_small_100", "timm:vit_tiny_patch16_224"),
        (
            "timm:mobilenetv3_small_100",
            "timm:vit_tiny_patch16_224",
            "timm:edgenext_xx_small",
            "torchvision:efficientnet_b0",
            "torchvision:shufflenet_v2_x0_5",
        ),
    ),
)
def test_networks_of_other_libraries_need_no_code_of_theirs(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 224, 224) if "vit" in name else torch.randn(2, 3, 64, 64)
    model, _ = qdrop.quantize(
        qdrop.build_model(name), x, {"w_qconfig": {"bit": 4} | FAST, "a_qconfig": FAST, "recon": None}
    )
    loaded = round_trip(model, tmp_path / "q")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    names = {type(module).__module__.partition(".")[0] for module in loaded.modules()}
    assert names <= {"torch", "qdrop"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_outputs_are_the_same_on_a_gpu(tmp_path):
    model, _ = quantized(network("residual"))
    loaded = round_trip(model.to("cuda"), tmp_path / "q").to("cuda")
    assert torch.equal(loaded(images().cuda()), outputs(model, images().cuda()))


def test_a_loaded_network_is_a_whole_one(saved):
    model, plan = quantized(network("residual"))
    loaded = load(saved)
    assert loaded.meta["plan"] == plan and loaded.meta["config"] == {"seed": 3}
    assert all(quantizer.active for quantizer in quantizers(loaded))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    x = images()
    names = [(part.name, part.inputs, part.outputs) for part in segments(model, plan)]
    assert [(part.name, part.inputs, part.outputs) for part in segments(loaded, plan)] == names
    with quantizing(loaded, weights=False):
        off = loaded(x)
    assert torch.equal(off, loaded(x))  # its float weights are the quantized ones


def test_saving_a_loaded_network_gives_the_same_file(saved, tmp_path):
    save(load(saved), tmp_path / "again", {"seed": 3}, {"top1": 71.5})
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_the_file_tells_its_plan_settings_and_metrics(saved):
    checkpoint = read(saved)
    assert checkpoint.plan == quantized(network("residual"))[1]
    assert checkpoint.config == {"seed": 3} and checkpoint.metrics == {"top1": 71.5}


def test_scales_and_zero_points_have_the_types_of_the_format(saved):
    tensors = read(saved).tensors
    for spec in quantized(network("residual"))[1].quantizers:
        assert tensors[f"{spec.name}.scale"].dtype is torch.float32, spec.name
        assert tensors[f"{spec.name}.zero_point"].dtype is torch.int16, spec.name


def test_nothing_of_the_model_is_changed_or_switched_by_saving(tmp_path):
    model, _ = quantized(network("residual"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save(model, tmp_path / "q")
    assert not any(quantizer.active for quantizer in quantizers(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- the stand-alone reader ----


@pytest.mark.parametrize(
    "weights", [{}, {"symmetric": True, "ch_axis": -1, "bit": 3}, {"quantizer": "LSQFakeQuantize", "bit": 5}]
)
def test_the_reader_in_the_docs_reads_what_we_read(weights, tmp_path):
    model, _ = quantized(network("squeeze"), QuantConfig(w_qconfig=WeightQConfig(**weights), recon=None))
    save(model, tmp_path / "q")
    found = reader().weights(str(tmp_path / "q"))
    loaded = load(tmp_path / "q")
    ours = {weight.name: weight for weight in quantized_weights(loaded)}
    assert found.keys() == ours.keys()
    for name, (integers, scale, zero_point, spec) in found.items():
        steps = ours[name].quantizer.integers(ours[name].weight).int().numpy()
        assert np.array_equal(integers, steps + ours[name].quantizer.qmin)
        weight = scale * (integers - zero_point).astype(np.float32)
        assert np.array_equal(weight, ours[name].weight.numpy()) and spec["bit"] in (2, 3, 5, 8)


def test_the_reader_leaves_out_what_numpy_has_no_type_for(tmp_path):
    tensors = {"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(3) > 0}
    save_file(tensors, tmp_path / "some.safetensors")
    _, found = reader().read_file(str(tmp_path / "some.safetensors"))
    assert found.keys() == {"a", "c"} and found["a"].dtype == np.int8 and found["c"].tolist() == [True] * 3


def test_the_reader_is_short_and_needs_numpy_only():
    text = READER.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    imported = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))}
    assert imported == {"base64", "json", "math", "sys", "zlib", "pathlib", "typing", "numpy"}


# ---- what is refused ----


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"{saved.name}: not a whole safetensors file"):
        load(saved)


def test_every_changed_byte_is_found(saved):
    data = saved.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 60):
        saved.write_bytes(data[:place] + bytes([data[place] ^ 0x04]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=saved.name):
            load(saved)


def test_a_changed_tensor_names_both_checksums(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"has the checksum|checksum \w{64}, but it says \w{64}"):
        load(saved)


def test_a_newer_format(saved):
    rewritten(saved, format_version="3")
    with pytest.raises(CheckpointError, match=r"format version 3; .* up to 2"):
        load(saved)


def test_an_older_format(saved):
    rewritten(saved, format_version="1")
    with pytest.raises(CheckpointError, match=r"format version 1, of an older qdrop; this one reads version 2"):
        load(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "qdrop", "format_version": "one"}])
def test_a_foreign_safetensors_file(metadata, tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "f", metadata)
    with pytest.raises(CheckpointError, match="expected 'qdrop', version '2'"):
        load(tmp_path / "f")


def test_a_foreign_file_a_folder_and_none(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: not a whole safetensors file"):
        load(tmp_path / "w.pth")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none")


def refuses(path, match):
    with pytest.raises(CheckpointError, match=match) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_forged_file_calls_only_what_is_listed(saved):
    def call(function):
        return lambda graph: graph["nodes"][-1].update(op="call_function", target=function, args=["/tmp/x"])

    original = saved.read_bytes()
    known = ("os.system", "torch.load", "builtins.eval", "torch.from_file", "operator.attrgetter", "math.factorial")
    aten = ("aten.from_file.default", "aten.add_.Tensor", "aten.relu_.default", "aten.conv2d.nothing", "aten.save")
    for function in (*known, *aten, "aten", "", "aten.conv2d.default.__class__"):
        saved.write_bytes(original)
        edit(saved, "graph", call(function))
        refuses(saved, f"'{function}' is no operator of the table")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda n: n.update(op="call_method", target="numpy"), "the operation is 'call_method'"),
        (lambda n: n.update(op="call_method", target="__class__"), "the operation is 'call_method'"),
        (lambda n: n.update(op="call_function", target="builtins.getattr", args=[1, "ndim"]), "no operator"),
        (lambda n: n.update(op="call_module", target="stem.0"), "the operation is 'call_module'"),
        (lambda n: n.update(op="get_attr", target='a"); import os; ("'), "not the path"),
        (lambda n: n.update(op="get_attr", target="__class__.forward"), "not the path"),
        (lambda n: n.update(op="get_attr", target="_modules.stem"), "not the path"),
        (lambda n: n.update(op="get_attr", target="\uff54\uff4f_folder"), "not the path"),  # to Python: to_folder
        (lambda n: n.update(name="x = 1; import os"), "not a name"),
        (lambda n: n.update(name="\uff58"), "not a name"),
        (lambda n: n.update(op="placeholder", target="x, y=print()"), "not a name"),
        (lambda n: n.update(op="run"), "the operation is 'run'"),
        (lambda n: n.update(op="call_function", target="operator.add", kwargs={"a=1, b": 2}), "not a name"),
        (lambda n: n.update(args=[{"node": "nowhere"}]), "nowhere"),
        (lambda n: n.update(args=[{"code": "1"}]), "none that a file may hold"),
    ],
)
def test_a_forged_graph_reaches_nothing(saved, change, match):
    edit(saved, "graph", lambda graph: change(graph["nodes"][-2]))
    refuses(saved, match)


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        ("graph", lambda g: g["inputs"]["dict"][0][1].update(dtype="load"), "is no type of numbers"),
        ("graph", lambda g: g["inputs"]["dict"][0][1].update(code="1"), "none that a file may hold"),
        ("graph", lambda g: g["inputs"]["dict"][0][1].update(shape=[2, 3, 10**5, 10**5]), "elements are refused"),
        ("graph", lambda g: g["inputs"]["dict"][0][1].update(shape=[2, 4, 8, 8]), "cannot be rebuilt"),
        ("graph", lambda g: g["inputs"].clear(), "cannot be rebuilt"),
        ("graph", lambda g: g.pop("nodes"), "nodes"),
        ("plan", lambda p: p["quantizers"][0].update(bit=3), "integers of 3 bits take"),
        ("plan", lambda p: p["quantizers"][0].update(bit=64), "64"),
        ("plan", lambda p: p["quantizers"][0].update(quantizer="Module"), "Module"),
        ("plan", lambda p: p["quantizers"][0].update(node="nowhere"), "nowhere|another network"),
        ("plan", lambda p: p["quantizers"][0].update(ch_axis=-1), "scales; expected 1"),
        ("plan", lambda p: p["quantizers"][0].update(ch_axis=9), "fit each other"),
        ("plan", lambda p: p["quantizers"][0].update(shape=["x"]), r"plan\.quantizers\.0\.shape\.0: .* integer"),
        ("plan", lambda p: p["quantizers"][0].update(bit=None), r"plan\.quantizers\.0\.bit: .* integer"),
        ("plan", lambda p: p.pop("units"), "units"),
    ],
)
def test_contents_that_do_not_fit_each_other(saved, part, change, match):
    edit(saved, part, change)
    refuses(saved, match)


GRIDS = ("stem.0.weight_quantizer", "body.0.conv1.output_quantizer")
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("end", "value", "match"),
    [
        *(("scale", value, f"holds {value:g}; expected finite numbers above 0") for value in (NAN, INF, -INF, 0, -0.1)),
        *(("zero_point", value, f"holds {value:g}; expected 0 to ") for value in (NAN, INF, -INF, -1, 256)),
    ],
)
def test_a_forged_grid_that_means_nothing(saved, name, end, value, match):
    """Nothing that reads a network, such as an export, has to expect one."""
    checkpoint = read(saved)
    values = checkpoint.tensors[f"{name}.{end}"].float()
    values[-1] = value
    write(replace(checkpoint, tensors=checkpoint.tensors | {f"{name}.{end}": values}), saved)
    refuses(saved, rf"{name}.{end} {match}")


def test_the_least_scale_and_the_outermost_zero_points(tmp_path):
    """An all-zero channel has the least scale; a learned zero point may be half a step from the integers."""
    weights = WeightQConfig(quantizer="LSQPlusFakeQuantize", observer=MIN_MAX)
    model = network("residual")
    with torch.no_grad():
        model.stem[0].weight[0] = 0
    model, _ = quantized(model, QuantConfig(w_qconfig=weights, recon=None))
    first, *others = quantizers(model, "weight")
    with torch.no_grad():
        first.scale[0] = MIN_SCALE
        for quantizer, end in zip(others, (first.qmin - 0.5, others[1].qmax + 0.4), strict=False):
            quantizer.zero_point.fill_(end)
    assert torch.equal(round_trip(model, tmp_path / "q")(images()), outputs(model, images()))


@pytest.mark.parametrize("part", ["config", "metrics"])
@pytest.mark.parametrize("text", ["[1]", "5", "null", '"text"'])
def test_metadata_of_the_wrong_kind(saved, part, text):
    rewritten(saved, **{part: text})
    refuses(saved, f"its metadata cannot be read: {part} is a JSON .*; expected an object")


def test_a_description_of_the_wrong_kind(saved):
    rewritten(saved, graph=base64.b64encode(zlib.compress(b"[]")).decode())
    refuses(saved, "graph is a JSON list; expected an object")


@pytest.mark.parametrize(
    ("field", "name"),
    [("name", 'x", print("run")) or getattr(self, "x'), ("name", "__class__.x"), ("node", "x = 1; import os")],
)
def test_a_forged_plan_reaches_nothing(saved, field, name):
    """torch.fx writes the names of quantizers into the source of the network."""
    edit(saved, "plan", lambda plan: plan["quantizers"][-1].update({field: name}))
    refuses(saved, "is not")


def test_a_description_that_unpacks_to_more_than_any_network_needs(saved, monkeypatch):
    monkeypatch.setattr("qdrop.checkpoint.file.LARGEST", 100)
    refuses(saved, "takes more than 100 bytes")


# ---- what cannot be saved ----


def test_a_network_that_is_not_quantized(tmp_path):
    with pytest.raises(CheckpointError, match=r"Linear is not a quantized network; expected what qdrop\.quantize"):
        save(nn.Linear(2, 2), tmp_path / "q")


def test_a_network_that_is_not_calibrated(tmp_path):
    model, _ = quantized(network("residual"), calibrate=False)
    with torch.no_grad():
        next(iter(quantizers(model))).scale.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"_quantizer\.scale holds nan; .*calibrate"):
        save(model, tmp_path / "q")
    assert not list(tmp_path.iterdir())


class Unusual(nn.Module):
    """Ends in a function that a file may not call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.special.bessel_j0(self.layer(x).mean((2, 3)))


def test_a_function_that_a_file_may_not_call_is_named_before_anything_is_written(tmp_path):
    model, _ = quantized(Unusual().eval())
    with pytest.raises(CheckpointError, match=r"special_bessel_j0.* is no operator of the table"):
        save(model, tmp_path / "q")
    assert not list(tmp_path.iterdir())


def test_describe_writes_nothing_and_write_is_save(tmp_path):
    model, _ = quantized(network("residual"))
    checkpoint = describe(model, {"a": 1}).with_metrics({"b": 2})
    write(checkpoint, tmp_path / "a")
    save(model, tmp_path / "b", {"a": 1}, {"b": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(checkpoint.build()(images()), outputs(model, images()))
