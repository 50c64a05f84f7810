"""The study of schedules: what is on record is not run again, and what is finished is not lost."""

from argparse import Namespace

from benchmarks import iterations
from benchmarks.common import Record
from benchmarks.iterations import FACTORS, measure, name_of, settings

ARGS = Namespace(quick=False, iters=[300], seeds=[1, 2], schedules=["rounding 3e-2", "batch 64"])


def test_an_interrupted_study_keeps_what_is_finished_and_goes_on_from_there(tmp_path, monkeypatch):
    planned = []

    def runs(args, keys):
        planned.append(keys)
        for key in keys[:3]:
            yield key, 80.0, 70.0
        raise KeyboardInterrupt

    monkeypatch.setattr(iterations, "HERE", tmp_path)
    monkeypatch.setattr(iterations, "runs", runs)
    first = measure(ARGS)
    assert len(planned[0]) == 8 and len(first.figures) == 6
    Record("iterations", "", "", False, 0.0, {}, first.figures).write(tmp_path / "results" / "iterations.json")
    second = measure(ARGS)
    assert planned[1] == planned[0][3:]
    assert {name_of(key, "top1") for key in planned[0][:6]} <= second.figures.keys()
    study, factors = second.tables
    assert [row[1] for row in study.rows] == ["rounding 3e-2"] * 2
    assert {row[1] for row in factors.rows} == {"rounding 3e-2", "batch 64"}


def test_each_factor_is_one_setting_of_the_fast_schedule():
    fast = settings("W2A4", "rounding 3e-2", 300).recon
    for name in FACTORS:
        changed = settings("W2A4", name, 300).recon
        assert sum(getattr(changed, field) != getattr(fast, field) for field in vars(fast)) == 1
