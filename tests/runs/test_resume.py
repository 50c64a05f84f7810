"""A run killed at any moment and started again ends as one that was never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import images, network, planned, quantized

import qdrop.files
from qdrop.config import Config, ReconConfig, load_config
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers
from qdrop.runs import run_folder
from qdrop.runs.resume import FinishedUnits, ResumeError, identity
from qdrop.solver.main_imagenet import main, run
from qdrop.solver.recon import reconstruct
from qdrop.solver.unit import reconstruct_unit

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "exp" / "quickstart" / "config.yaml"
SHORT = [
    "quant.recon.iters=30",
    "quant.calibrate=64",
    "quant.calibrate_range=64",
    "data.val_limit=100",
    "quant.network.iters=2",
]
CPU = torch.device("cpu")
RECON = ReconConfig(batch_size=4, iters=12, round_lr=0.05)


class Killed(BaseException):
    """Stands for the end of the process."""


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "qdrop.solver.main_imagenet", "--config", str(CONFIG), *SHORT]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, f"process.out={out}"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(out: Path) -> None:
    process = start(out)
    _, told = process.communicate()
    assert process.returncode == 0, told.decode()


def kill(process: subprocess.Popen) -> bool:
    """Whether the process was still there to be killed."""
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return killed


def outcome(folder: Path) -> dict:
    """All that a run leaves, but for what it cost."""
    costs = ("seconds", "peak_memory_mb", "seconds_calibrate", "seconds_reconstruct")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    assert result["seconds_reconstruct"] >= sum(line["seconds"] for line in lines) > 0
    assert not (folder / "resume").exists()
    return {
        "network": (folder / "quantized.safetensors").read_bytes(),
        "plan": (folder / "plan.json").read_text(),
        "log": [{key: value for key, value in line.items() if key not in costs} for line in lines],
        "result": {key: value for key, value in result.items() if key not in costs},
        "files": {path.name for path in folder.iterdir()} - {"run.log"},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The outcome of the run that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(load_config(CONFIG, SHORT), folder)
    return outcome(folder)


def units_in(folder: Path) -> int:
    return len(list((folder / "resume").glob("*.safetensors")))


def interrupted(folder: Path, config: Config, monkeypatch, after: int) -> None:
    """A run that ends when `after` units are finished."""
    keep = FinishedUnits.keep

    def keep_and_end(self, unit, report):
        keep(self, unit, report)
        if units_in(folder) == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FinishedUnits, "keep", keep_and_end)
        with pytest.raises(Killed):
            run(config, folder)
    assert units_in(folder) == after


def test_killed_twice_it_ends_with_the_same_bytes(tmp_path, whole):
    for units in (1, 4):
        process = start(tmp_path)
        while units_in(tmp_path) < units and process.poll() is None:
            time.sleep(0.01)
        assert kill(process)
        assert units <= units_in(tmp_path) < 8
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 0
    assert outcome(tmp_path) == whole
    assert "going on with an interrupted run" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(tmp_path, whole):
    began = time.monotonic()
    finish(tmp_path / "alone")
    length = time.monotonic() - began
    out, kills, moments = tmp_path / "killed", 0, np.random.default_rng(0)
    while kills < 20:
        process = start(out)
        try:
            process.wait(moments.uniform(0.2, 1) * length)
        except subprocess.TimeoutExpired:
            kills += kill(process)
            continue
        _, told = process.communicate()
        assert process.returncode == 0, told.decode()
        assert outcome(out) == whole
        shutil.rmtree(out)
    finish(out)
    assert outcome(out) == whole == outcome(tmp_path / "alone")


@pytest.mark.parametrize("units", [1, 5, 8])
def test_goes_on_behind_the_last_finished_unit(units, tmp_path, whole, monkeypatch):
    config = load_config(CONFIG, SHORT)
    interrupted(tmp_path, config, monkeypatch, units)
    learned = []
    monkeypatch.setattr("qdrop.solver.recon.reconstruct_unit", _watched(learned))
    run(config, tmp_path)
    assert len(learned) == 8 - units
    assert outcome(tmp_path) == whole


def _watched(calls):
    def learn(unit, *args, **kwargs):
        calls.append(unit)
        return reconstruct_unit(unit, *args, **kwargs)

    return learn


def test_ended_before_its_last_step_it_is_not_complete_yet(tmp_path, whole, monkeypatch):
    def end(self):
        raise Killed

    config = load_config(CONFIG, SHORT)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FinishedUnits, "clear", end)
        run(config, tmp_path)
    assert (tmp_path / "result.json").is_file() and units_in(tmp_path) == 8
    run(config, tmp_path)
    assert outcome(tmp_path) == whole


def test_a_damaged_unit_is_learned_again(tmp_path, whole, monkeypatch, caplog):
    config = load_config(CONFIG, SHORT)
    interrupted(tmp_path, config, monkeypatch, 3)
    file = tmp_path / "resume" / "0001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    run(config, tmp_path)
    assert "0001.safetensors" in caplog.text and "'stage1.0' is reconstructed again" in caplog.text
    assert outcome(tmp_path) == whole


def test_half_written_files_of_killed_processes_do_not_stay(tmp_path, whole, monkeypatch):
    config = load_config(CONFIG, SHORT)
    interrupted(tmp_path, config, monkeypatch, 3)
    for name in ("run.json", "0003.safetensors"):
        (tmp_path / "resume" / f".{name}.99.tmp").touch()
    for name in whole["files"] - {".lock"} | {".probe"}:
        (tmp_path / f".{name}.99.tmp").touch()
    run(config, tmp_path)
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("quant.recon.iters=31", "quant.recon.iters was 30 and is 31"),
        ("process.seed=7", "process.seed was 1005 and is 7"),
        ("quant.calibrate=32", "the calibration images differ"),
        ("model.path=null", "the weights differ"),
    ],
)
def test_another_run_does_not_go_on_and_destroys_nothing(override, told, tmp_path, monkeypatch, caplog):
    interrupted(tmp_path, load_config(CONFIG, SHORT), monkeypatch, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.log"}
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}", override]) == 1
    assert told in caplog.text and "2 finished units" in caplog.text and "delete" in caplog.text
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.log"}
    assert after == before


def test_what_does_not_change_the_outcome_may_change(tmp_path, monkeypatch):
    interrupted(tmp_path, load_config(CONFIG, SHORT), monkeypatch, 2)
    run(
        load_config(CONFIG, [*SHORT, "process.threads=1", "quant.recon.cache.device=disk", "data.val_limit=50"]),
        tmp_path,
    )
    assert json.loads((tmp_path / "result.json").read_text())["validation_images"] == 50


def test_a_full_disk_ends_the_run_and_leaves_what_was_finished(tmp_path, whole, monkeypatch, caplog):
    sync = os.fsync

    def full(descriptor):
        if units_in(tmp_path) >= 3:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(qdrop.files.os, "fsync", full)
        assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 1
    assert "No space left" in caplog.text and units_in(tmp_path) == 3
    assert not list(tmp_path.rglob("*.tmp"))
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 0
    assert outcome(tmp_path) == whole


def test_too_little_room_is_told_before_anything_is_calibrated(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 1
    assert "1 MB free, but the run may write" in caplog.text and "process.out" in caplog.text
    assert "calibrated" not in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_at_once(tmp_path, caplog):
    tmp_path.chmod(0o500)
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 1
    assert str(tmp_path) in caplog.text and "full precision" not in caplog.text


def test_a_folder_on_a_read_only_disk_is_told_at_once(tmp_path, monkeypatch, caplog):
    def read_only(path, data):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(run_folder, "write_file", read_only)
    assert main(["--config", str(CONFIG), *SHORT, f"process.out={tmp_path}"]) == 1
    assert "Read-only file system" in caplog.text and "full precision" not in caplog.text


def test_restores_what_was_learned_and_the_report(tmp_path):
    graph, plan = quantized(network("residual"))
    finished = FinishedUnits(tmp_path / "r", plan, {"a": 1})
    reports = list(reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=finished))
    assert len(finished) == len(plan.units) and finished.seconds == 0
    again, _ = quantized(network("residual"))
    found = FinishedUnits(tmp_path / "r", plan, {"a": 1})
    assert [asdict(r) for r in reconstruct(again, plan, {"x": images()}, RECON, 0, CPU, finished=found)] == [
        asdict(r) for r in reports
    ]
    assert found.seconds == pytest.approx(sum(report.seconds for report in reports))
    for a, b in zip(quantizers(graph, Kind.WEIGHT), quantizers(again, Kind.WEIGHT), strict=True):
        assert torch.equal(a.rounding.levels, b.rounding.levels) and torch.equal(a.scale, b.scale)


def test_units_without_a_record_of_their_run_count_for_nothing(tmp_path):
    graph, plan = quantized(network("residual"))
    list(
        reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=FinishedUnits(tmp_path / "r", plan, {"a": 1}))
    )
    (tmp_path / "r" / "run.json").unlink()
    assert len(FinishedUnits(tmp_path / "r", plan, {"a": 2})) == 0
    assert not list((tmp_path / "r").glob("*.safetensors"))


def test_units_of_another_run_are_refused(tmp_path):
    graph, plan = quantized(network("residual"))
    finished = FinishedUnits(tmp_path / "r", plan, {"a": 1, "b": 3, "c": 4})
    next(reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=finished))
    with pytest.raises(ResumeError, match=r"1 finished units .* a was 1 and is 2, b was 3 and is None\. Start"):
        FinishedUnits(tmp_path / "r", plan, {"a": 2, "c": 4})


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"checksums": null}', '{"checksums": []}', "[" * 100_000, ""])
def test_a_record_that_no_run_writes_is_refused(tmp_path, content):
    graph, plan = quantized(network("residual"))
    finished = FinishedUnits(tmp_path / "r", plan, {"a": 1})
    next(reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=finished))
    (tmp_path / "r" / "run.json").write_text(content)
    with pytest.raises(ResumeError, match=r"run\.json cannot be read: .*; delete "):
        FinishedUnits(tmp_path / "r", plan, {"a": 1})


def test_units_of_another_version_go_on_with_a_warning(tmp_path, caplog):
    graph, plan = quantized(network("residual"))
    finished = FinishedUnits(tmp_path / "r", plan, {"a": 1, "torch": "2.8"})
    next(reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=finished))
    assert len(FinishedUnits(tmp_path / "r", plan, {"a": 1, "torch": "2.9"})) == 1
    assert "another version: torch was 2.8 and is 2.9" in caplog.text


def test_clearing_leaves_nothing(tmp_path):
    _, plan = quantized(network("residual"))
    FinishedUnits(tmp_path / "r", plan, {}).clear()
    assert not (tmp_path / "r").exists()


def test_the_identity_depends_on_what_the_units_depend_on():
    config = Config()
    graph, plan = planned(network("residual"))
    other, _ = planned(network("residual", seed=1))
    base = identity(config, plan, graph, images())
    assert base == identity(config, plan, graph, images())
    assert json.loads(json.dumps(base)) == base
    assert differing(base, identity(config, plan, other, images())) == (["checksums"], ["weights"])
    assert differing(base, identity(config, plan, graph, images(seed=1))) == (["checksums"], ["calibration images"])


def differing(a: dict, b: dict) -> tuple[list[str], list[str]]:
    keys, checksums = [key for key in a if a[key] != b[key]], a["checksums"]
    return keys, [name for name in checksums if checksums[name] != b["checksums"][name]]


def test_a_setting_is_told_with_its_values_whatever_it_is_called(tmp_path):
    graph, plan = quantized(network("residual"))
    sums = {"weights": "a1", "plan": "b2"}
    finished = FinishedUnits(tmp_path / "r", plan, {"the key": 1, "checksums": sums})
    next(reconstruct(graph, plan, {"x": images()}, RECON, 0, CPU, finished=finished))
    with pytest.raises(ResumeError, match=r"another one: the key was 1 and is 2, the weights differ\. Start"):
        FinishedUnits(tmp_path / "r", plan, {"the key": 2, "checksums": sums | {"weights": "c3"}})
