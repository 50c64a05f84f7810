"""Flatness, ablations and sensitivity, from runs of the digits network that take seconds."""

import csv
from pathlib import Path

import pytest
import torch
from networks import Network, Residual, filled, images, quantized

from qdrop.analysis import ablate, flatness, sensitivity
from qdrop.config import load_config
from qdrop.graph.insert import quantized_weights
from qdrop.pipeline import freeze
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver.main_imagenet import run

CONFIG = Path(__file__).parents[2] / "exp" / "quickstart" / "config.yaml"
SHORT = [
    "quant.calibrate=64",
    "quant.calibrate_range=64",
    "data.val_limit=50",
    "quant.recon.iters=2",
    "quant.network.iters=2",
]


def rows(file):
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def network():
    return freeze(quantized(filled(Network(Residual())))[0])


def test_a_direction_has_the_norm_of_each_filter(network):
    along = flatness.direction(network, torch.Generator().manual_seed(0))
    for weight in quantized_weights(network):
        axes = tuple(range(1, weight.weight.ndim))
        found, wanted = (
            torch.linalg.vector_norm(tensor, dim=axes)
            for tensor in (along[weight.name], weight.quantizer(weight.weight))
        )
        assert torch.allclose(found, wanted)


def test_weights_move_inside_and_are_back_afterwards(network):
    before = network(images())
    along = {weight.name: torch.zeros_like(weight.weight) for weight in quantized_weights(network)}
    along["head.weight"][2] = 1.0
    with flatness.moved(network, [(0.5, along), (0.25, along)]):
        shift = network(images()) - before
    assert torch.equal(shift[:, [0, 1, 3, 4]], torch.zeros(8, 4)) and (shift[:, 2].abs() > 0).all()
    assert torch.equal(network(images()), before)


def test_the_loss_is_least_where_both_give_the_same():
    target = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    same = flatness.loss(lambda batch: batch, target, target)
    probabilities = target.softmax(1)
    assert same == pytest.approx(float(-(probabilities * probabilities.log()).sum(1).mean()))
    assert flatness.loss(lambda batch: -batch, target, target) > same


def test_flatness_of_a_run(tmp_path, capsys):
    run(load_config(CONFIG, SHORT), tmp_path / "digits")
    arguments = [str(tmp_path / "digits"), "--out", str(tmp_path / "out"), "--images", "40", "--directions", "2"]
    assert flatness.main([*arguments, "--plane", "--points", "3"]) == 0
    found = rows(tmp_path / "out" / "flatness.csv")
    assert [(row["images"], float(row["size"])) for row in found] == [
        (kind, size) for kind in ("calibration", "test") for size in flatness.SIZES
    ]
    (middle,) = [row for row in rows(tmp_path / "out" / "plane.csv") if row["size"] == row["other"] == "0.0"]
    assert float(middle["change"]) == pytest.approx(0)
    assert (tmp_path / "out" / "flatness.png").stat().st_size > 10_000 < (tmp_path / "out" / "plane.png").stat().st_size
    assert "digits" in capsys.readouterr().out


def test_an_ablation_goes_through_all_seeds_and_is_not_repeated(tmp_path, capsys, monkeypatch):
    arguments = ["where", "--config", str(CONFIG), "--out", str(tmp_path), "--seeds", "1", "2", "--set", *SHORT]
    assert ablate.main(arguments) == 0
    found = rows(tmp_path / "ablate.csv")
    assert len(found) == 8 and {row["seed"] for row in found} == {"1", "2"}
    assert "inputs and activations" in capsys.readouterr().out and (tmp_path / "where.png").exists()
    files = sorted((tmp_path / "where").glob("*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    assert ablate.main(arguments) == 0
    assert [file.stat().st_mtime_ns for file in files] == before and len(files) == 8


def test_every_setting_of_a_study_is_one(tmp_path):
    for study, variants in ablate.studies([*ablate.STUDIES, ablate.DOMAIN], str(tmp_path)).items():
        configs = [load_config(CONFIG, settings) for settings in variants.values()]
        assert len({str(config) for config in configs}) == len(variants), study


def test_a_domain_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        ablate.main(["domain", "--config", str(CONFIG)])
    assert "needs --other FOLDER" in capsys.readouterr().err


def test_every_quantizer_is_in_one_unit():
    network, plan = quantized(filled(Network(Residual())))
    found = sensitivity.of_units(network, plan)
    every = [q for (unit, _), chosen in found.items() if unit != sensitivity.ALL for q in chosen]
    assert sorted(map(id, every)) == sorted(map(id, quantizers(network)))
    assert found[sensitivity.ALL, Kind.WEIGHT] == quantizers(network, Kind.WEIGHT)


def test_the_error_is_that_of_the_chosen_quantizers_alone():
    network = quantized(filled(Network(Residual())))[0]
    (name,) = (node.name for node in network.graph.nodes if node.op == "placeholder")
    batch = {name: images()}
    wanted = sensitivity.given(network, [batch], ())
    assert sensitivity.error(wanted, wanted) == 0
    weights = quantizers(network, Kind.WEIGHT)
    with torch.no_grad(), quantizing(network, weights=False, activations=False):
        full = network(images())
    with torch.no_grad(), quantizing(network, activations=False):
        rounded = network(images())
    expected = float(((rounded - full) ** 2).mean() / full.var(correction=0))
    found = sensitivity.error(sensitivity.given(network, [batch], weights), wanted)
    assert found == pytest.approx(expected) and expected > 0


def test_sensitivity_of_a_config(tmp_path, capsys):
    arguments = ["--config", str(CONFIG), "--out", str(tmp_path), "--evaluate", "--set", *SHORT]
    assert sensitivity.main(arguments) == 0
    found = rows(tmp_path / "sensitivity.csv")
    assert {row["kind"] for row in found} == {"weight", "activation"} and found[-1]["unit"] == sensitivity.ALL
    assert all(float(row["error"]) > 0 and 0 <= float(row["figure"]) <= 100 for row in found)
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000 and sensitivity.ALL in capsys.readouterr().out
