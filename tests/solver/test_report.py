"""The table of experiments is what the recorded results say."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qdrop.config import config_from_dict, load_config, save_config
from qdrop.solver.report import _changes, main, report
from qdrop.solver.result import Result

EXP = Path(__file__).parents[2] / "exp"
FILE = "config.resolved.yaml"
RESULTS = sorted(EXP.glob("**/results/*/result.json"))


def test_the_committed_table_is_up_to_date():
    assert (EXP / "README.md").read_text(encoding="utf-8") == report(EXP)


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: str(f.parent.relative_to(EXP)))
def test_a_recorded_result_is_of_the_config_beside_it(file):
    result = Result(**json.loads(file.read_text()))
    config = load_config(file.parents[2] / "config.yaml")
    resolved = load_config(file.parent / "config.resolved.yaml")
    assert (result.w_bit, result.a_bit) == (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit)
    assert (result.iters, result.seed) == (resolved.quant.recon.iters, resolved.process.seed)
    assert result.model == config.model.type
    assert len((file.parent / "log.jsonl").read_text().splitlines()) > 5


def test_every_published_figure_has_a_row_with_its_command():
    text = report(EXP)
    published = json.loads((EXP / "published.json").read_text())["imagenet"]
    for bits in ("w4a4", "w2a4", "w3a3", "w2a2"):
        for network, figure in zip(published["networks"], published[bits], strict=True):
            rows = [line for line in text.splitlines() if f"exp/{bits}/{network}/run.sh" in line]
            assert rows and all(f"| {figure:.2f} |" in row for row in rows)


BASE = Result("resnet20", "CIFAR-10", 2, 2, 81.0, 15.0, 66.0, 0.5, 10, 64, 100, 1, 1.0, 1.0, 1.0)


def record(exp: Path, name: str, resolved: dict | None = None, **changes) -> None:
    """A result of resnet20 at W2A2 beside a config with 20 iterations."""
    (exp / "published.json").write_text((EXP / "published.json").read_text())
    folder = exp / "cifar10" / "resnet20" / "w2a2" / "results" / name
    folder.mkdir(parents=True)
    result = replace(BASE, **changes)
    (folder / "result.json").write_text(json.dumps(asdict(result)))
    recon = {"iters": 10, "drop_prob": result.drop_prob}
    settings = {"quant.recon": recon, "process.seed": result.seed} | (resolved or {})
    save_config(config_from_dict({}, [f"{key}={json.dumps(value)}" for key, value in settings.items()]), folder / FILE)
    (folder.parents[1] / "config.yaml").write_text("quant: {recon: {iters: 20}}")


def rows(exp: Path) -> list[str]:
    return [line for line in report(exp).splitlines() if "resnet20/w2a2" in line]


def test_means_over_seeds_and_a_dash_where_nothing_was_measured(tmp_path):
    rate = {"quant.recon.round_lr": 0.02}
    record(tmp_path, "a", rate)
    record(tmp_path, "b", rate, top1=68.0)
    record(tmp_path, "c", rate, top1=60.0, drop_prob=1.0)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    (row,) = rows(tmp_path)
    assert row in text
    assert "model.path=... quant.recon.round_lr=0.02 quant.recon.iters=10` |" in row
    assert "67.00 ± 1.41 | 2 | 66.5" in row and "| 60.00 |" in row
    assert "10 iterations of 32 images, rates 0.02 (rounding) and 4e-05 (scales), 64 calibration images" in row
    assert "| 51.69 | - | - | - | - |" in text


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("quant.recon.precision", "bfloat16", "64 calibration images, computed in bfloat16"),
        ("quant.recon.cache.dtype", "float16", "64 calibration images, cached in float16"),
        ("quant.recon.granularity", "layer", "64 calibration images, layer by layer"),
        ("quant.recon.weight", 0.1, "quant.recon.weight=0.1"),
        ("quant.recon.warm_up", 0.3, "quant.recon.warm_up=0.3"),
        ("quant.recon.b_range", [10, 2], "quant.recon.b_range=[10.0, 2.0]"),
        ("quant.w_qconfig.observer", "MinMaxObserver", "MinMaxObserver"),
        ("data.val_limit", 50, "data.val_limit=50"),
        ("data.augment", False, "data.augment=false"),
        ("model.kwargs", {"width": 2}, 'model.kwargs={"width": 2}'),
    ],
)
def test_another_experiment_has_a_row_of_its_own(key, value, told, tmp_path):
    record(tmp_path, "a")
    record(tmp_path, "b", {key: value}, seed=2, top1=60.0)
    usual, other = sorted(rows(tmp_path), key=lambda row: told in row)
    assert told not in usual and told in other
    assert "| 66.00 | 1 |" in usual
    assert "60.00" not in usual and "66.00" not in other


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/elsewhere"),
        ("model.path", "/elsewhere.pth"),
        ("data.num_workers", 0),
        ("process.device", "cuda"),
        ("process.out", "/tmp/x"),
        ("quant.recon.cache.device", "disk"),
        ("quant.recon.compile", "off"),
    ],
)
def test_where_it_ran_does_not_matter(key, value, tmp_path):
    record(tmp_path, "a")
    record(tmp_path, "b", {key: value}, seed=2, top1=68.0)
    (row,) = rows(tmp_path)
    assert "67.00 ± 1.41 | 2 |" in row


def test_another_count_of_images_is_another_experiment(tmp_path):
    record(tmp_path, "a")
    record(tmp_path, "b", validation_images=50)
    record(tmp_path, "c", data="CIFAR-10, JPEG copies")
    assert len(rows(tmp_path)) == 3


def test_a_broken_result_is_told(tmp_path, capsys):
    (tmp_path / "published.json").write_text((EXP / "published.json").read_text())
    folder = tmp_path / "w2a2" / "res18" / "results" / "a"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"top1": 3}')
    assert main([str(tmp_path)]) == 1
    assert "top1_full" in capsys.readouterr().err


def test_the_table_needs_neither_the_main_job_nor_its_data():
    loaded = "import sys, qdrop.solver.report; print(*sys.modules)"
    env = os.environ | {"PYTHONPATH": str(EXP.parent)}
    done = subprocess.run([sys.executable, "-c", loaded], env=env, capture_output=True, text=True, check=True)
    assert not {"qdrop.solver.main_imagenet", "qdrop.solver.datasets"} & set(done.stdout.split())


def test_a_changed_override_of_a_pattern_is_one_that_parses():
    before, after = ({"quant": {"overrides": {"layer4.*": {"a_bit": bit}}}} for bit in (8, 6))
    (change,) = _changes("", before, after)
    (override,) = shlex.split(change)
    assert override == "quant.overrides[layer4.*].a_bit=6"
    assert config_from_dict(before, [override]).quant.overrides["layer4.*"].a_bit == 6
