"""The command line of a run, its help, and the folder it works in."""

from pathlib import Path

import pytest

from qdrop.commands.command import parse_args, run_folder
from qdrop.config import PRESETS, config_from_dict, config_to_dict
from qdrop.config.help import describe, settings


def test_parse_args(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("quant: {calibrate: 100}")
    config, file = parse_args(["data.val_limit=8", "--config", str(path), "quant.w_qconfig.bit=3"])
    assert file == path
    assert (config.quant.calibrate, config.data.val_limit, config.quant.w_qconfig.bit) == (100, 8, 3)
    with pytest.raises(SystemExit):
        parse_args(["quant.w_qconfig.bit=3"])


def test_help_lists_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    listed = list(settings())
    assert stopped.value.code == 0
    assert len(listed) > 50
    for key, hint, _, meaning in listed:
        assert meaning
        assert f" {'.'.join(key)} " in shown
        assert f"({describe(hint)}) {meaning}" in shown
    assert "quant.recon.drop_prob = 0.5 (float 0..1) Probability of KEEPING the quantized value" in shown
    assert "quant.a_qconfig.bit = 4 (int 2..8) Number of bits." in shown
    assert "quant.overrides.<pattern>.w_bit = null (int 2..8 | null)" in shown


def test_help_says_what_presets_stand_for(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    assert f"fast: iters={PRESETS['fast']['iters']}, round_lr=" in capsys.readouterr().out


def test_run_folder():
    config = config_from_dict({"model": {"type": "timm/resnet50"}})
    folder = run_folder(config, "exp/x/config.yaml")
    assert folder.parent == Path("exp/x/runs")
    name, _, digest = folder.name.rpartition("-")
    assert name == "timm_resnet50-w2a4"
    assert len(digest) == 8
    other = config_from_dict({"model": {"type": "timm/resnet50"}, "process": {"seed": 1}})
    assert run_folder(other, "exp/x/config.yaml") != folder
    faster = {"process": {"threads": 2, "device": "cpu"}, "data": {"num_workers": 0}}
    assert run_folder(config_from_dict({"model": {"type": "timm/resnet50"}, **faster}), "exp/x/config.yaml") == folder
    assert run_folder(config_from_dict({"process": {"out": "here"}}), "x.yaml") == Path("here")


def test_the_run_folder_may_be_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(config_from_dict({"process": {"out": "~/runs"}}), "x.yaml") == tmp_path / "runs"


def test_the_order_of_overrides_makes_another_folder():
    """The last pattern that matches decides."""
    patterns = {"layer1.*": {"w_bit": 4}, "layer1.0.conv1": {"w_bit": 8}}
    first, second = (
        config_from_dict({"quant": {"overrides": dict(items)}})
        for items in (patterns.items(), [*patterns.items()][::-1])
    )
    assert run_folder(first, "config.yaml") != run_folder(second, "config.yaml")
    assert run_folder(first, "config.yaml") == run_folder(config_from_dict(config_to_dict(first)), "config.yaml")
