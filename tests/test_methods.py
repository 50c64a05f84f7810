"""`quant.method`: one word for settings, in a file, on the command line and in Python."""

from dataclasses import fields

import pytest
import torch
from networks import images
from torch import nn

import qdrop
from qdrop.config import METHODS, PRESETS, ConfigError, QuantConfig, ReconConfig, config_from_dict, flat, load_config
from qdrop.config.methods import QDROP, settings_of, title_of


def quant(method, overrides=(), **beside):
    return config_from_dict({"quant": {"method": method, **beside}}, overrides).quant


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_stands_for_is_a_setting_that_qdrop_names_too(name):
    """So that one method over another leaves nothing of it behind."""
    known = [key for key, _ in flat(QDROP)]
    for key, value in flat(METHODS[name].settings):
        assert value is None or key in known or key.partition(".")[0] in known
    assert METHODS[name].title and METHODS[name].source


def test_qdrop_is_the_default():
    assert quant("qdrop") == QuantConfig()


def test_one_method_over_another_leaves_nothing_of_it(tmp_path):
    for below in METHODS:
        (tmp_path / "below.yaml").write_text(f"quant: {{method: {below}, w_qconfig: {{bit: 3}}}}")
        for above in METHODS:
            (tmp_path / "c.yaml").write_text(f"base: below.yaml\nquant: {{method: {above}}}")
            assert load_config(tmp_path / "c.yaml").quant == quant(above, w_qconfig={"bit": 3})
            assert load_config(tmp_path / "below.yaml", [f"quant.method={above}"]).quant == quant(
                above, w_qconfig={"bit": 3}
            )


def test_what_is_set_beside_a_method_takes_precedence():
    found = quant("brecq", recon={"preset": "fast", "granularity": "layer"})
    assert found == quant("adaround", recon={"preset": "fast"}) and found.recon.iters == PRESETS["fast"]["iters"]
    assert quant("brecq", ["quant.recon.granularity=layer"]) == quant("adaround")


def test_nearest_learns_nothing_whatever_schedule_stands_beside():
    """One word is changed in a config, and its schedule may stay."""
    assert quant("nearest", recon={"preset": "fast", "iters": 300}) == QuantConfig(recon=None)
    assert quant("qdrop", recon=None).recon is None


def test_an_unknown_method_is_an_error_that_names_them(tmp_path):
    (tmp_path / "c.yaml").write_text("quant:\n  method: qdorp")
    with pytest.raises(ConfigError, match=r"c.yaml:2: quant.method = qdorp: expected qdrop \| qdrop-e2e \| nearest"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"quant.method = \[1\]: expected qdrop"):
        quant([1])


def test_the_cases_of_the_paper():
    """Where activations are quantized while a unit's rounding learns: nowhere; everywhere; only before the unit."""
    case1, case2, case3 = (quant(f"case{number}").recon for number in (1, 2, 3))
    assert (case1.input, case1.drop_prob, case1.learn_scales) == ("weights", 0.0, "after")
    assert (case2.drop_prob, case2.learn_scales) == (1.0, "with_rounding")
    assert (case3.input, case3.input_prob, case3.drop_prob) == ("quantized", 1.0, 0.0)
    changed = {field.name for field in fields(ReconConfig) if len({getattr(c, field.name) for c in (case1, case3)}) > 1}
    assert changed == {"input"}


@pytest.mark.parametrize("name", METHODS)
def test_a_network_by_each_method(name, tmp_path):
    """On its grids, as a file shows, with a report for each unit that learned."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    settings = {"calibrate": 8, "recon": {"iters": 3, "batch_size": 4, "preset": "fast", "compile": "off"}}
    found, report = qdrop.quantize(model, images(), {"method": name, **settings})
    assert bool(report.units) == (name != "nearest")
    qdrop.save(found, tmp_path / "network.safetensors")
    assert torch.equal(qdrop.load(tmp_path / "network.safetensors")(images()), found(images()))
    assert title_of(quant(name)) in (METHODS[name].title, "BRECQ")  # which the paper's case 1 is


def test_settings_of_a_method_are_whole():
    assert {key for key, _ in flat(settings_of("adaround"))} == {key for key, _ in flat(QDROP)}
