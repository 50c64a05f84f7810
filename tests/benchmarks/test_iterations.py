"""The study of schedules: what is on record is not run again, and what is finished is not lost."""

import json
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from benchmarks import common, iterations_mobilenetv2, study
from benchmarks.common import HERE
from benchmarks.iterations import STUDY
from benchmarks.records import Record
from benchmarks.study import FAST, PUBLISHED, key_of, measurement, name_of
from qdrop.commands.command import parse_args
from qdrop.config import PRESETS

ARGS = Namespace(
    data="../data",
    weights="net.pth",
    quick=False,
    device=torch.device("cpu"),
    iters=[300],
    seeds=[1, 2],
    bits=["W2A4", "W2A2"],
    schedules=["rounding 3e-2", "batch 64"],
)


def test_an_interrupted_study_keeps_what_is_finished_and_goes_on_from_there(tmp_path, monkeypatch):
    planned = []

    def runs(study, args, keys):
        planned.append(keys)
        for key in keys[:3]:
            yield key, 80.0, 70.0
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "QUICK", tmp_path / "runs")
    monkeypatch.setattr(study, "runs", runs)
    first = measurement(STUDY)(ARGS)
    assert len(planned[0]) == 8 and len(first.figures) == 6
    Record("iterations", "", "", False, 0.0, {}, first.figures).write(tmp_path / "results" / "iterations.json")
    second = measurement(STUDY)(ARGS)
    assert planned[1] == planned[0][3:]
    assert {name_of(key, "top1") for key in planned[0][:6]} <= second.figures.keys()
    schedules, factors = second.tables
    assert [row[1] for row in schedules.rows] == ["rounding 3e-2"] * 2
    assert {row[1] for row in factors.rows} == {"rounding 3e-2", "batch 64"}


COMMAND = ["--data=../data", "--weights=net.pth", "--iters=300", "--seeds", "1", "2", "--schedules", "rounding 3e-2"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for module in (study, common):
        monkeypatch.setattr(module, "HERE", tmp_path)
        monkeypatch.setattr(module, "QUICK", tmp_path / "runs")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def finished(study, args, keys):
    """In the place of `study.runs`."""
    return ((key, 80.0, 70.0) for key in keys)


def figures(folder):
    return Record.read(folder / "results" / "iterations.json").figures


@pytest.mark.parametrize("what", ["runs", "plot"])
def test_a_study_that_fails_loses_no_run(what, folders, monkeypatch):
    """Neither those finished before one that fails, nor all of them where drawing does."""
    planned, plot = [], study.plot

    def runs(study, args, keys):
        planned.append(keys)
        for key in keys:
            yield key, 80.0, 70.0
            if what == "runs":
                raise SystemExit("killed")

    def fails(*args):
        raise SystemExit("cannot draw")

    monkeypatch.setattr(study, "runs", runs)
    monkeypatch.setattr(study, "plot", plot if what == "runs" else fails)
    with pytest.raises(SystemExit):
        study.main("Title.", STUDY, COMMAND)
    monkeypatch.setattr(study, "plot", plot)
    done = {"runs": 1, "plot": 4}[what]
    with suppress(SystemExit):
        study.main("Title.", STUDY, COMMAND)
    assert len(planned[0]) == 4 and planned[1] == planned[0][done:]
    monkeypatch.setattr(study, "runs", finished)
    assert study.main("Title.", STUDY, COMMAND) == 0
    assert len(figures(folders)) == 8 and not list((folders / "runs").glob("*unfinished*"))


def test_two_parts_of_a_study_may_run_side_by_side(folders, monkeypatch):
    """The second starts while the first is at its last run, and ends before it."""

    def runs(study_, args, keys):
        yield keys[0], 80.0, 70.0
        if args.seeds == [1]:
            assert study.main("Title.", STUDY, [*COMMAND, "--seeds", "2"]) == 0
        yield keys[1], 81.0, 71.0

    monkeypatch.setattr(study, "runs", runs)
    assert study.main("Title.", STUDY, [*COMMAND, "--seeds", "1"]) == 0
    assert len(figures(folders)) == 8


def test_a_quick_run_leaves_what_is_kept_alone(folders, monkeypatch):
    study.unfinished("iterations").parent.mkdir()
    study.unfinished("iterations").write_text('{"W2A4.published.300.seed1.top1": 70.0}')
    monkeypatch.setattr(study, "runs", finished)
    assert study.main("Title.", STUDY, [*COMMAND, "--quick"]) == 0
    assert study.kept("iterations") == {"W2A4.published.300.seed1.top1": 70.0}


def test_runs_on_a_gpu_have_a_record_of_their_own(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(study, "runs", finished)
    assert study.main("Title.", STUDY, COMMAND) == study.main("Title.", STUDY, [*COMMAND, "--device", "cuda"]) == 0
    records = [Record.read(folders / "results" / f"{label}.json") for label in ("iterations", "iterations-cuda")]
    assert [len(record.figures) for record in records] == [8, 8]
    assert [record.machine["gpu"] for record in records] == [None, "a GPU"]
    assert not list((folders / "runs").glob("*unfinished*"))


def test_the_record_can_be_deleted_to_start_afresh(folders, monkeypatch):
    """What is kept of a study that failed is only what is not on record."""
    planned = []

    def runs(study, args, keys):
        planned.append(keys)
        yield keys[0], 80.0, 70.0
        if args.seeds == [2]:
            raise SystemExit("killed")
        yield keys[1], 80.0, 70.0

    monkeypatch.setattr(study, "runs", runs)
    assert study.main("Title.", STUDY, [*COMMAND, "--seeds", "1"]) == 0
    with pytest.raises(SystemExit):
        study.main("Title.", STUDY, [*COMMAND, "--seeds", "2"])
    assert {key_of(name)[0] for name in study.kept("iterations")} == {planned[1][0]}


def test_figures_of_a_schedule_that_is_gone_are_not_shown(folders, monkeypatch):
    name = name_of(("W2A4", "an old one", 300, 1), "top1")
    study.unfinished("iterations").parent.mkdir()
    study.unfinished("iterations").write_text(json.dumps({name: 70.0}))
    monkeypatch.setattr(study, "runs", finished)
    assert study.main("Title.", STUDY, COMMAND) == 0
    record = Record.read(folders / "results" / "iterations.json")
    assert name in record.figures and {row[1] for row in record.tables[0].rows} == {"rounding 3e-2"}


def test_each_factor_is_one_setting_of_the_fast_schedule():
    fast = STUDY.settings("W2A4", "rounding 3e-2", 300).recon
    for name in STUDY.factors:
        changed = STUDY.settings("W2A4", name, 300).recon
        assert sum(getattr(changed, field) != getattr(fast, field) for field in vars(fast)) == 1


def test_the_rates_are_those_of_the_presets():
    for preset, rates in (("published", PUBLISHED), ("fast", FAST)):
        assert {**PRESETS[preset], **rates} == PRESETS[preset]


def test_mobilenetv2_is_quantized_as_its_experiments_are_but_for_what_the_study_says():
    ours = iterations_mobilenetv2.STUDY.settings("W2A2", "published", 1000)
    assert (ours.w_qconfig.bit, ours.a_qconfig.bit, ours.a_qconfig.observer) == (2, 2, "ClippingObserver")
    theirs, _ = parse_args(["--config", str(HERE.parent / "exp/w2a2/mnv2/config.yaml"), "data.path=x"], "")
    assert ours.w_qconfig == theirs.quant.w_qconfig
    assert replace(ours.recon, iters=20000, batch_size=32) == theirs.quant.recon
