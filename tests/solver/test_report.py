"""The table of experiments is what the recorded results say."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from qdrop.config_io import load_config
from qdrop.solver.report import main, report
from qdrop.solver.result import Result

EXP = Path(__file__).parents[2] / "exp"
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


def test_means_over_seeds_and_a_dash_where_nothing_was_measured(tmp_path):
    (tmp_path / "published.json").write_text((EXP / "published.json").read_text())
    base = Result("resnet20", "CIFAR-10", 2, 2, 81.0, 15.0, 66.0, 0.5, 10, 64, 100, 1, 1.0, 1.0, 1.0)
    for name, change in {"a": {}, "b": {"top1": 68.0}, "c": {"top1": 60.0, "drop_prob": 1.0}}.items():
        folder = tmp_path / "cifar10" / "resnet20" / "w2a2" / "results" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(asdict(base) | change))
        drop_prob = change.get("drop_prob", 0.5)
        recon = f"{{iters: 10, drop_prob: {drop_prob}, round_lr: 0.02}}"
        (folder / "config.resolved.yaml").write_text(f"quant: {{recon: {recon}}}")
        (folder.parents[1] / "config.yaml").write_text("quant: {recon: {iters: 20}}")
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    row = next(line for line in text.splitlines() if "resnet20/w2a2" in line)
    assert "model.path=... quant.recon.round_lr=0.02 quant.recon.iters=10` |" in row
    assert "67.00 ± 1.41 | 2 | 66.5" in row and "| 60.00 |" in row
    assert "10 iterations of 32 images, rates 0.02 (rounding) and 4e-05 (scales), 64 calibration images" in row
    assert "| 51.69 | - | - | - | - |" in text


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
