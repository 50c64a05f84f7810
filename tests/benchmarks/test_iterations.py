"""The study of schedules: what is on record is not run again, and what is finished is not lost."""

from argparse import Namespace
from dataclasses import replace

import pytest

from benchmarks import iterations_mobilenetv2, study
from benchmarks.common import HERE, Record
from benchmarks.iterations import STUDY
from benchmarks.study import FAST, PUBLISHED, measurement, name_of
from qdrop.config import PRESETS
from qdrop.solver.command import parse_args

ARGS = Namespace(
    data="../data",
    weights="net.pth",
    quick=False,
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


def test_a_killed_study_loses_no_run(tmp_path, monkeypatch):
    planned = []

    def runs(study, args, keys):
        planned.append(keys)
        yield keys[0], 80.0, 70.0
        if len(planned) == 1:
            raise SystemExit("killed")

    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "QUICK", tmp_path / "runs")
    monkeypatch.setattr(study, "runs", runs)
    with pytest.raises(SystemExit):
        measurement(STUDY)(ARGS)
    outcome = measurement(STUDY)(ARGS)
    assert planned[1] == planned[0][1:]
    assert len(outcome.figures) == 4
    assert list((tmp_path / "runs").iterdir()) == []


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
