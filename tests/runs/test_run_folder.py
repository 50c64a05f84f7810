"""A run folder belongs to one run at a time, and what a complete run left in it stays."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qdrop.config import Config, DataConfig, ModelConfig, ProcessConfig, config_from_dict, load_config
from qdrop.export import Container
from qdrop.export.__main__ import write_onnx, write_program
from qdrop.models.weights import ASSETS, EMBEDDED
from qdrop.runs.result import Result
from qdrop.runs.run_folder import complete, portable
from qdrop.runs.scopes import locked
from qdrop.solver.main_imagenet import main, run

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "exp" / "quickstart" / "config.yaml"
SHORT = ["quant.recon=null", "quant.calibrate=64", "quant.calibrate_range=64", "data.val_limit=50"]
HOLD = "import sys; from qdrop.runs.scopes import locked\nwith locked({}): print(flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Config, Result]:
    """The folder of a complete run, not to be changed; its settings; its result."""
    folder, config = tmp_path_factory.mktemp("whole"), load_config(CONFIG, SHORT)
    return folder, config, run(config, folder)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_complete_run_is_told_and_not_touched(whole, caplog):
    folder, config, result = whole
    before = state(folder)
    with caplog.at_level("INFO"):
        assert run(config, folder) == result
    assert f"{folder} is complete, top-1 {result.outcome['top1']:.2f}; delete it" in caplog.text
    assert state(folder) == before


def test_a_folder_that_was_moved_is_still_complete(whole, tmp_path):
    folder, _, result = whole
    shutil.copytree(folder, tmp_path / "moved")
    assert complete(tmp_path / "moved", load_config(CONFIG, [*SHORT, "process.out=moved"])) == result


def test_what_is_left_beside_the_identity_of_finished_units_does_not_count(whole, tmp_path):
    folder, config, result = whole
    shutil.copytree(folder, tmp_path / "run")
    resume = tmp_path / "run" / "resume"
    resume.mkdir()
    for name in (".DS_Store", "0003.safetensors"):  # someone else's, and ours of a run killed while it tidied up
        (resume / name).touch()
    assert complete(tmp_path / "run", config) == result
    (resume / "run.json").touch()
    assert complete(tmp_path / "run", config) is None


@pytest.mark.parametrize("change", ["process.seed=3", "data.val_limit=null", "quant.calibrate_batch=32"])
def test_other_settings_are_another_run(change, whole):
    folder, _, _ = whole
    assert complete(folder, load_config(CONFIG, [*SHORT, change])) is None


def test_how_it_was_computed_does_not_matter(tmp_path):
    short = [*SHORT[1:], "quant.recon.iters=1"]
    result = run(load_config(CONFIG, short), tmp_path)
    how = ["process.threads=3", "process.device=cpu", "process.out=elsewhere", "data.num_workers=1"]
    how += ["data.batch_size=50", "data.pin_memory=false", "quant.recon.cache.device=disk", "quant.recon.compile=off"]
    assert complete(tmp_path, load_config(CONFIG, [*short, *how, "quant.recon.keep_gpu=false"])) == result


def test_that_a_finished_run_is_replaced_is_told(whole, tmp_path, caplog):
    folder, config, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    other = load_config(CONFIG, [*SHORT, "process.seed=3"])
    result = run(other, tmp_path / "run")
    assert f"{tmp_path / 'run'} holds a finished run of other settings or weights: it is replaced" in caplog.text
    assert complete(tmp_path / "run", other) == result and complete(tmp_path / "run", config) is None


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_other_weights_under_the_same_name_are_another_run(scheme, tmp_path):
    weights, out = tmp_path / "digits.safetensors", tmp_path / "run"
    shutil.copy(ASSETS / EMBEDDED["digits_resnet"], weights)
    config = load_config(CONFIG, [*SHORT, f"model.path={scheme}{weights}"])
    result = run(config, out)
    assert complete(out, config) == result
    save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights)
    assert complete(out, config) is None
    weights.unlink()
    assert complete(out, config) is None


def test_what_was_exported_goes_with_its_network_and_nothing_else_does(whole, tmp_path):
    folder, _, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    for container in Container:
        write_onnx(tmp_path / "run" / "quantized.safetensors", container)
    write_program(tmp_path / "run" / "quantized.safetensors")
    (tmp_path / "run" / "quantized-mine.onnx").touch()
    assert {path.name for path in (tmp_path / "run").glob("quantized*")} == {
        *("quantized.safetensors", "quantized-native.onnx", "quantized-int8.onnx", "quantized.pt2"),
        "quantized-mine.onnx",
    }
    run(load_config(CONFIG, [*SHORT, "process.seed=3"]), tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").glob("quantized*")}
    assert left == {"quantized.safetensors", "quantized-mine.onnx"}


def test_the_same_run_done_again_replaces_none(whole, tmp_path, caplog):
    folder, config, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "quantized.safetensors").unlink()
    run(config, tmp_path / "run")
    assert "replaced" not in caplog.text


@pytest.mark.parametrize("name", ["result.json", "config.resolved.yaml", "quantized.safetensors"])
@pytest.mark.parametrize("text", [None, "", '{"top1": 3}'])
def test_what_is_missing_or_foreign_is_not_complete(name, text, whole, tmp_path):
    folder, config, result = whole
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if text is not None:
        (tmp_path / "copy" / name).write_text(text)
    expected = result if name == "quantized.safetensors" and text is not None else None  # its content is not read
    assert complete(tmp_path / "copy", config) == expected


def test_a_second_run_at_the_same_time_is_refused_and_harms_nothing(whole, tmp_path, caplog):
    folder, _, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    command = ["--config", str(CONFIG), *SHORT, f"process.out={tmp_path / 'run'}", "process.seed=3"]
    before = state(tmp_path / "run")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    hold = [sys.executable, "-c", HOLD.format("__import__('pathlib').Path(sys.argv[1])"), str(tmp_path / "run")]
    with subprocess.Popen(hold, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert main(command) == 1
        assert "another run is at work in this folder" in caplog.text and "process.out" in caplog.text
        assert state(tmp_path / "run") == before
        other.kill()
    assert main(command) == 0


def test_where_there_are_no_locks_it_runs_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert "cannot be locked" in caplog.text and "No locks available" in caplog.text


@pytest.mark.parametrize(
    "settings", ["data.type=imagenet data.path=/absent", "model.path=absent.pth", "quant.calibrate=9999"]
)
def test_a_start_that_fails_leaves_no_folder(settings, tmp_path):
    out = tmp_path / "runs" / "deep" / "run"
    assert main(["--config", str(CONFIG), *settings.split(), f"process.out={out}"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_what_was_there(whole, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    assert main(["--config", str(CONFIG), "model.path=absent.pth", f"process.out={mine}"]) == 1
    assert main(["--config", str(CONFIG), "model.path=absent.pth", f"process.out={mine / 'inner'}"]) == 1
    assert {path.name for path in mine.iterdir()} - {".lock", "run.log"} == {"notes.txt"}
    shutil.copytree(whole[0], tmp_path / "run")
    assert main(["--config", str(CONFIG), "model.path=absent.pth", f"process.out={tmp_path / 'run'}"]) == 1
    assert complete(tmp_path / "run", whole[1]) == whole[2]


def test_settings_that_are_passed_on_hold_nothing_of_the_machine():
    data = DataConfig(path="/data/imagenet", val_limit=7)
    process = ProcessConfig(seed=5, device="cuda:1", threads=32, out="/home/me/run")
    config = Config(model=ModelConfig(path="/weights/net.pth"), data=data, process=process)
    passed_on = config_from_dict(portable(config))
    assert passed_on.process == ProcessConfig(seed=5)
    assert passed_on.model == ModelConfig(path="net.pth")
    config = replace(config, model=ModelConfig(path="https://me:secret@a.example/weights/the%20net.pth?token=secret"))
    assert portable(config)["model"]["path"] == "the net.pth"
    assert passed_on.data == DataConfig(path="imagenet", val_limit=7)
    assert passed_on.quant == config.quant
