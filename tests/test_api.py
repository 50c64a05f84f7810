"""The notebook API: one call, any model, any iterable of images."""

import numpy as np
import pytest
import torch
from torch import nn

import qdrop
from qdrop import GraphError
from qdrop.config import Config, ConfigError, QuantConfig
from qdrop.quantization.state import quantizers
from qdrop.solver.calibrate import CalibrationError

RECON = {"a_qconfig": {"bit": 4}, "w_qconfig": {"bit": 2}, "recon": {"iters": 5, "batch_size": 8}}


class Small(nn.Module):
    """A stem, a residual block, a head, written the functional way."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.b(torch.relu(self.a(x)))) + x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def images():
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_printed_report_is_a_table_of_the_units(model, images):
    _, report = qdrop.quantize(model, images, RECON)
    title, _, header, _, *rows, _ = str(report).splitlines()
    assert title.strip().startswith("3 units, learned in ")
    assert [cell.strip() for cell in header.split("┃")[1:5]] == ["unit", "kind", "loss before", "loss after"]
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
    assert [row[:4] for row in cells] == [
        [unit.unit, unit.kind, f"{unit.loss_before:.4g}", f"{unit.loss_after:.4g}"] for unit in report.units
    ]


def test_quantizes_and_leaves_the_model_alone(model, images):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images)
    quantized, report = qdrop.quantize(model, images, RECON)
    assert [unit.unit for unit in report.units] == ["stem", "block", "head"]
    assert torch.equal(model(images), expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    out = quantized(images)
    assert 0 < (out - expected).abs().max() < expected.abs().max()
    assert all(quantizer.active for quantizer in quantizers(quantized))


def test_the_result_needs_no_gradients_and_can_be_exported(model, images):
    """With gradients on, as they are where nobody has thought of them."""
    quantized, _ = qdrop.quantize(model, images, RECON)
    assert not any(parameter.requires_grad for parameter in quantized.parameters())
    out = quantized(images[:2])
    assert out.grad_fn is None
    program = torch.export.export(quantized, (images[:2],))
    assert torch.equal(program.module()(images[:2]), out)


def test_images_batches_and_labelled_batches_are_the_same(model, images):
    forms = [images, images.split(10), [(batch, torch.zeros(len(batch))) for batch in images.split(8)]]
    outs = [qdrop.quantize(model, form, RECON)[0](images) for form in forms]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_takes_a_generator_and_no_more_of_it_than_it_needs(model, images):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield images[:8]

    qdrop.quantize(model, endless(), RECON | {"calibrate": 20})
    assert len(taken) == 3


def test_without_recon_it_rounds_to_nearest(model, images):
    _, report = qdrop.quantize(model, images, {"w_qconfig": {"bit": 3}, "recon": None})
    assert report.units == () and str(report) == str(report.plan)
    assert {spec.bit for spec in report.plan.quantizers if spec.kind == "weight"} == {8, 3}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            None,
            "W2A4 by QDrop, then end to end, preset short: 400 iterations for each of 3 units, then 800 over the whole"
            " network",
        ),
        ({}, "W2A4 by QDrop, preset published: 20,000 iterations for each of 3 units"),
        ({"w_qconfig": {"bit": 3}}, "W3A4 by QDrop, preset published: 20,000 iterations for each of 3 units"),
        ({"recon": None}, "W2A4 by rounding to the nearest: nothing is learned, as recon is null"),
    ],
)
def test_the_log_says_first_which_method_runs_and_what_a_config_leaves_out_is_as_published(
    config, line, model, images, monkeypatch, caplog
):
    monkeypatch.setattr("qdrop.solver.recon.reconstruct", lambda *args: iter(()))
    monkeypatch.setattr("qdrop.pipeline.learn_network", lambda *args: None)
    with caplog.at_level("INFO", "qdrop"):
        qdrop.quantize(model, images, config)
    assert next(record.message for record in caplog.records if record.levelname == "INFO") == line


def test_takes_a_quant_config(model, images):
    quantized, _ = qdrop.quantize(model, images, QuantConfig(a_qconfig=None, recon=None))
    assert len(quantizers(quantized)) == 4


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_images(model, images, count):
    with pytest.raises(ValueError, match=rf"{count} calibration images.*8"):
        qdrop.quantize(model, images[:count], RECON)
    with pytest.raises(ValueError, match="calibration holds no batch; expected images, or batches of them"):
        qdrop.quantize(model, [], RECON)


def test_the_batch_of_the_reconstruction_is_named_only_where_there_is_one(model, images):
    with pytest.raises(ValueError, match=r"7 calibration images; at least 8 \(recon\.batch_size\) are"):
        qdrop.quantize(model, images[:7], RECON)
    with pytest.raises(ValueError, match="0 calibration images; at least 1 are needed"):
        qdrop.quantize(model, images[:0], RECON | {"recon": None})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", ["tensor", "batches"])
def test_without_gradients_outside_it_learns_all_the_same(mode, form, model, images):
    expected = qdrop.quantize(model, images, RECON)[0](images)
    with mode():
        torch.manual_seed(0)
        made_here, copied = Small().eval(), images.clone()  # in inference mode they can never be saved for backward
        given = copied if form == "tensor" else copied.split(8)
        assert torch.equal(qdrop.quantize(made_here, given, RECON)[0](images), expected)
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode) and not torch.is_grad_enabled()
    quantized, _ = qdrop.quantize(made_here, given, RECON)
    assert torch.equal(quantized(images), expected)
    quantized.requires_grad_()(images).sum().backward()  # a plain module, which may be trained on
    assert made_here.head.weight.is_inference() is (mode is torch.inference_mode)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_refused(dtype, model, images):
    with pytest.raises(GraphError, match=rf"'stem\.weight' is {dtype}; expected torch\.float32"):
        qdrop.quantize(model.to(dtype), images, RECON)


def test_images_that_the_model_cannot_run_on(model, images):
    with pytest.raises(GraphError, match=r"cannot run on images of shape \[8, 8, 3\]: .*channels"):
        qdrop.quantize(model, images.permute(0, 2, 3, 1), RECON)


def test_an_unknown_key_is_named(model, images):
    with pytest.raises(ConfigError, match=r"w_qconfig\.bits.*bit"):
        qdrop.quantize(model, images, {"w_qconfig": {"bits": 3}})


def test_a_whole_config_is_not_its_section(model, images):
    with pytest.raises(ConfigError, match=r"holds a section quant; expected .*config\['quant'\]"):
        qdrop.quantize(model, images, {"quant": {"w_qconfig": {"bit": 3}}})


@pytest.mark.parametrize("config", [qdrop.ReconConfig(), Config(), [("w_qconfig", {"bit": 3})]])
def test_a_config_of_another_type(config, model, images):
    with pytest.raises(ConfigError, match=rf"config is a {type(config).__name__}; expected a QuantConfig or a dict"):
        qdrop.quantize(model, images, config)


def test_numbers_of_numpy_are_numbers(model, images):
    _, report = qdrop.quantize(model, images, {"w_qconfig": {"bit": np.int64(3)}, "recon": None})
    assert {spec.bit for spec in report.plan.quantizers if spec.kind == "weight"} == {3, 8}


def test_a_quantized_model_is_refused(model, images):
    quantized, _ = qdrop.quantize(model, images, {"recon": None})
    with pytest.raises(GraphError, match="quantized already"):
        qdrop.quantize(quantized, images, {})


def test_what_is_no_model_and_what_are_no_images(model, images):
    with pytest.raises(TypeError, match=r"model is a function; expected a torch\.nn\.Module"):
        qdrop.quantize(lambda x: x, images)
    with pytest.raises(ValueError, match="calibration is a NoneType; expected images"):
        qdrop.quantize(model, None)


def test_dead_channels(images):
    """A row of zeros, long enough to be summed up before it is searched."""
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 8, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    model(images)
    nn.init.zeros_(model[2].weight[3])
    quantized, _ = qdrop.quantize(model, images, {"w_qconfig": {"bit": 2}, "recon": None})
    assert quantized(images).isfinite().all()


def test_images_that_are_not_finite(model, images):
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        qdrop.quantize(model, images, RECON)


def test_the_quantized_model_keeps_its_learned_integers_in_its_state_dict(model, images):
    quantized, _ = qdrop.quantize(model, images, RECON)
    again, _ = qdrop.quantize(model, images, RECON | {"recon": None})
    assert not torch.equal(again(images), quantized(images))
    again.load_state_dict(quantized.state_dict())
    assert torch.equal(again(images), quantized(images))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda images: images.double(), "float64; expected torch.float32"),
        (lambda images: (images * 255).byte(), "cannot run on images of shape .*: Input type"),
        (lambda images: images / 0, "not finite"),
        (lambda images: [{"image": images}], r"cannot run on images of shape \[3, 8, 8\]: conv2d"),
        (lambda images: [[]], "the batch holds nothing for x"),
        (lambda images: images[0], r"cannot run on images of shape \[8, 8\]: .*channels"),
        (lambda images: images.sum(), r"of shape \[\]; expected \[N, C, H, W\]"),
        (lambda images: [(image, 0) for image in images], r"cannot run on images of shape \[8, 8\]: .*channels"),
        (lambda images: [images, images[:, :2]], r"different shapes .*\(2, 8, 8\), \(3, 8, 8\)"),
    ],
)
def test_images_that_cannot_be_calibrated_on(model, images, change, told):
    with pytest.raises(ValueError, match=told):
        qdrop.quantize(model, change(images), {"w_qconfig": {"bit": 4}, "recon": None})


def test_fewer_images_than_asked_for_are_mentioned(model, images, caplog):
    qdrop.quantize(model, images, {"w_qconfig": {"bit": 4}, "calibrate": 100, "recon": None})
    assert "32 calibration images, of the 100" in caplog.text


class Flattened(nn.Module):
    """Flattens with `view` what a convolution writes, as many tutorials do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 2), nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(x.view(x.size(0), -1))


def test_a_view_may_follow_a_convolution(images):
    model = Flattened().eval()
    quantized, _ = qdrop.quantize(model, images, RECON)
    with qdrop.quantizing(quantized, weights=False, activations=False):
        torch.testing.assert_close(quantized(images), model(images), rtol=1e-4, atol=1e-5)


def test_what_becomes_of_the_model_later_does_not_reach_the_quantized_network(model, images):
    quantizer = {"a_qconfig": {"bit": 4}, "w_qconfig": {"bit": 4, "quantizer": "FixedFakeQuantize"}, "recon": None}
    quantized, _ = qdrop.quantize(model, images, quantizer)
    expected = quantized(images)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.mul_(3)
    assert torch.equal(quantized(images), expected)


class Standardised(nn.Module):
    """Subtracts a buffer of its own, and holds state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.small = Small()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def get_extra_state(self):
        return {"classes": ["a", "b"]}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return self.small((x - self.mean) * self.scale)


def test_buffers_of_the_model_do_not_reach_the_quantized_network_either(images):
    model = Standardised().eval()
    quantized, _ = qdrop.quantize(model, images, {"w_qconfig": {"bit": 4}, "recon": None})
    expected = quantized(images)
    model.mean.fill_(100.0)
    model.scale.fill_(-1.0)
    assert torch.equal(quantized(images), expected)


class Masked(nn.Module):
    """Attention to what came before, by a mask of -inf."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.register_buffer("mask", torch.full((64, 64), float("-inf")).triu(1))

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)  # [N, 64, 8]
        attention = (x @ x.transpose(1, 2) + self.mask).softmax(-1)
        return self.head((attention @ x).mean(1))


@pytest.mark.parametrize("placement", ["published", "integer"])
def test_a_mask_of_minus_infinity_is_not_quantized(placement, images):
    model = Masked().eval()
    quantized, _ = qdrop.quantize(model, images, {"w_qconfig": {"bit": 8}, "placement": placement, "recon": None})
    assert quantized(images).isfinite().all()


class Logarithm(nn.Module):
    """A layer reads logarithms of 0."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.log(torch.relu(self.stem(x)))
        return self.head(torch.sigmoid(self.inner(x)).mean((2, 3)))


def test_values_inside_the_network_that_no_range_covers(images):
    with pytest.raises(CalibrationError, match="'stem' has values that are not finite"):
        qdrop.quantize(Logarithm().eval(), images, {"w_qconfig": {"bit": 4}, "recon": None})


class SequenceFirst(nn.Module):
    """Works on `[T, N, C]`, and gives one number for each image."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x)).flatten(2).permute(2, 0, 1)
        x = torch.relu(self.inner(x)).mean(0)
        return torch.sigmoid(self.head(x).squeeze(1))


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_a_scale_for_each_channel_where_the_first_axis_is_not_the_images(granularity, images):
    config = RECON | {"a_qconfig": {"bit": 4, "ch_axis": 1}, "recon": RECON["recon"] | {"granularity": granularity}}
    quantized, report = qdrop.quantize(SequenceFirst().eval(), images, config)
    assert quantized(images).shape == (32,) and len(report.units) > 0
    axes = {spec.name: spec.ch_axis for spec in report.plan.quantizers if spec.kind == "activation"}
    assert axes["inner.output_quantizer"] == -1 and axes["stem.output_quantizer"] == 1


def test_images_that_carry_a_gradient(model, images):
    quantized, _ = qdrop.quantize(model, images.clone().requires_grad_(), RECON)
    assert torch.equal(quantized(images), qdrop.quantize(model, images, RECON)[0](images))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(device, model, images):
    with pytest.raises(ValueError, match=f"device = '{device}'"):
        qdrop.quantize(model, images, RECON, device=device)


def test_a_lazy_layer_that_has_no_shape_yet(images):
    with pytest.raises(GraphError, match=r"parameter '0\.weight' has no shape yet"):
        qdrop.quantize(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2)), images, RECON)
