"""The main job on the embedded default: what it writes, what it refuses, that it repeats itself."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qdrop
from qdrop.checkpoint import read
from qdrop.config import Config, config_from_dict, load_config
from qdrop.errors import QdropError
from qdrop.graph.plan import Plan
from qdrop.runs.result import Result
from qdrop.runs.run_folder import complete
from qdrop.solver.imagenet_util import validation_loader
from qdrop.solver.main_imagenet import main, run
from qdrop.tasks.classification.accuracy import accuracy

CONFIG = Path(__file__).parents[2] / "exp" / "quickstart" / "config.yaml"
SHORT = [
    "quant.recon.iters=8",
    "quant.calibrate=64",
    "quant.calibrate_range=64",
    "data.val_limit=100",
    "quant.network.iters=2",
]


def short(*overrides: str) -> Config:
    return load_config(CONFIG, [*SHORT, *overrides])


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run by the command, and what it said."""
    folder, said = tmp_path_factory.mktemp("run"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("qdrop").addHandler(handler)
    try:
        assert main(["--config", str(CONFIG), *SHORT, "data.calib_from=train", f"process.out={folder}"]) == 0
    finally:
        logging.getLogger("qdrop").removeHandler(handler)
    return folder, said


def test_a_run_leaves_a_complete_folder(ran):
    folder, _ = ran
    result = Result.read(folder / "result.json")
    assert (result.w_bit, result.a_bit, result.iters, result.calibration_images) == (2, 4, 8, 64)
    assert result.validation_images == 100
    assert result.full["top1"] > 95
    env = json.loads((folder / "env.json").read_text())
    assert env["packages"]["torch"] and len(env["weights"]["sha256"]) == 64
    assert load_config(folder / "config.resolved.yaml") == short(f"process.out={folder}")
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    lines = log_lines(folder)
    assert [line["unit"] for line in lines] == [unit.module for unit in plan.units]
    for line in lines:
        assert line["loss_before"] > 0 and line["seconds"] > 0 and line["peak_memory_mb"] > 0
        assert 0 <= line["flipped"] <= 1


def test_a_seeded_run_repeats_bit_for_bit_and_another_seed_does_not(tmp_path):
    runs = [run(short(f"process.seed={seed}"), tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    timeless = [
        [{k: v for k, v in line.items() if k not in ("seconds", "peak_memory_mb")} for line in log_lines(tmp_path / n)]
        for n in "abc"
    ]
    assert timeless[0] == timeless[1]
    assert timeless[0] != timeless[2]
    assert runs[0].outcome == runs[1].outcome


def test_the_run_leaves_a_network_that_gives_its_top1_and_names_no_places(ran):
    (folder, _), config = ran, short()
    result = Result.read(folder / "result.json")
    found = read(folder / "quantized.safetensors")
    assert found.metrics == result.figures() and found.metrics["top1"] == result.outcome["top1"]
    assert found.config["process"]["out"] is None and str(folder) not in json.dumps(found.config)
    assert config_from_dict(dict(found.config)).quant == config.quant
    model = qdrop.load(folder / "quantized.safetensors")
    assert accuracy(model, validation_loader(config.data), torch.device("cpu")) == result.outcome["top1"]


def test_a_failed_check_of_the_network_comes_before_calibration(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("qdrop.graph.data.operator_named", _refuse)
    with caplog.at_level("INFO"):
        assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 1
    assert "no such operator" in caplog.text and "calibrated" not in caplog.text


def _refuse(name):
    raise ValueError("no such operator")


def test_without_reconstruction_it_is_round_to_nearest(tmp_path):
    result = run(short("quant.recon=null"), tmp_path)
    assert result.outcome == result.nearest
    assert result.iters == 0 and result.drop_prob is None
    assert log_lines(tmp_path) == []


def test_weights_only(tmp_path):
    result = run(short("quant.recon=null", "quant.a_qconfig=null"), tmp_path)
    assert result.a_bit is None
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {spec["kind"] for spec in plan["quantizers"]} == {"weight"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["quant.recon.itres=3"], "quant.recon.iters"),
        (["model.path=/nowhere/w.pth"], "/nowhere/w.pth"),
        (["model.type=digits_resnot"], "digits_resnet"),
        (["data.type=imagenet"], "data.path"),
        (["quant.calibrate=5000"], "5000"),
        (["quant.overrides[layer9.*].w_bit=4"], "layer9.*"),
        (["model.kwargs.num_classes=7", "model.path=null"], "7"),
        (["process.out=/proc/none"], "set process.out to another one: '/proc/none'"),
        ([f"process.out={__file__}"], "File exists: no run folder can be made there"),
        (["data.type=imagenet", "model.type=resnet18", "model.path=auto", "data.path=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_told_in_words_and_fails(overrides, told, tmp_path, caplog):
    out = [] if any(o.startswith("process.out") for o in overrides) else [f"process.out={tmp_path}"]
    with caplog.at_level("ERROR"):
        assert main(["--config", str(CONFIG), *SHORT, *out, *overrides]) == 1
    assert told in caplog.text
    assert "Traceback" not in caplog.text
    assert not (tmp_path / "result.json").exists()


def test_main_runs_and_logs(ran):
    folder, _ = ran
    assert "top-1" in (folder / "run.log").read_text()
    assert json.loads((folder / "result.json").read_text())["model"] == "digits_resnet"


def test_a_run_says_its_method_and_one_line_for_each_unit(ran):
    folder, said = ran
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    count = len(plan.units)
    assert said[0] == (
        f"W2A4 by QDrop, then end to end, rates of preset fast: 8 iterations for each of {count} units, then 2 over the"
        " whole network"
    )
    assert sum("compiled" in line for line in said) == 1
    for number, unit in enumerate(plan.units, start=1):
        (line,) = [line for line in said if unit.module in line]
        assert line.startswith(f"{unit.module} ({number} of {count}): loss ")


def test_a_start_that_fails_keeps_the_log_of_the_run_before(tmp_path):
    command = ["--config", str(CONFIG), *SHORT, "quant.recon=null", f"process.out={tmp_path}"]
    assert main(command) == 0
    before = (tmp_path / "run.log").read_text()
    assert main([*command, "model.type=nope"]) == 1
    assert "top-1" in before and (tmp_path / "run.log").read_text().startswith(before)


def test_a_second_run_does_not_leave_the_first_ones_result_beside_its_own_log(tmp_path, monkeypatch):
    run(short("quant.recon=null"), tmp_path)

    def fails(*args):
        raise ValueError("calibration failed")

    monkeypatch.setattr("qdrop.pipeline.calibrate", fails)
    with pytest.raises(ValueError, match="calibration failed"):
        run(short(), tmp_path)
    assert not (tmp_path / "result.json").exists() and not (tmp_path / "quantized.safetensors").exists()


def no_room(patch):
    patch.setattr("qdrop.runs.run_folder.shutil.disk_usage", lambda path: SimpleNamespace(free=1e6))


def not_to_be_saved(patch):
    patch.setattr("qdrop.graph.data.operator_named", _refuse)


@pytest.mark.parametrize("cause", [no_room, not_to_be_saved])
def test_a_run_that_is_refused_leaves_the_one_before_complete(cause, tmp_path, monkeypatch):
    before = run(short("quant.recon=null"), tmp_path)
    files = contents(tmp_path)
    with monkeypatch.context() as patch:
        cause(patch)
        with pytest.raises((OSError, QdropError), match=r"MB free|no such operator"):
            run(short(), tmp_path)
    after = contents(tmp_path)
    assert after.pop("run.log").startswith(files.pop("run.log"))
    assert after == files and complete(tmp_path, short("quant.recon=null")) == before


def test_a_run_that_cannot_begin_leaves_the_one_before_alone(tmp_path):
    run(short("quant.recon=null"), tmp_path)
    before = contents(tmp_path)
    broken = replace(short(), model=replace(short().model, type="resnet20", path=None))
    with pytest.raises(Exception, match="channels"):
        run(broken, tmp_path)
    after = contents(tmp_path)
    assert after.pop("run.log").startswith(before.pop("run.log"))
    assert after == before
