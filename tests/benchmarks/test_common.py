"""What the benchmarks share."""

import json

import pytest
import torch

from benchmarks import common
from benchmarks.common import arguments
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Record, Table
from benchmarks.timing import Timings, interleaved

TABLE = Table("A caption.", ("case", "seconds"), (("small", "1.0"), ("large", "2.0")))


def measure(args):
    figure, ax = axes("Title", "x", "y")
    bars(ax, ["a", "b"], {"one": [1.0, 2.0], "two": [3.0, 4.0]})
    return Outcome({"small.seconds": 1.0}, (TABLE,), figure, ("A note.",))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "HERE", tmp_path / "record")
    monkeypatch.setattr(common, "QUICK", tmp_path / "quick")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("quick", "folder"), [([], "record"), (["--quick"], "quick")])
def test_a_run_is_kept_and_a_quick_one_elsewhere(quick, folder, folders):
    file = folders / "figures.json"
    assert common.main("Title.\n\nMore.", "step", measure, argv=[*quick, "--json", str(file)]) == 0
    kept = folders / folder / "results" / "step.json"
    assert sorted(p.relative_to(folders).parts[0] for p in folders.iterdir()) == sorted(["figures.json", folder])
    record = Record.read(kept)
    assert record == Record.read(file)
    assert record.title == "Title" and record.figures == {"small.seconds": 1.0} and record.tables == (TABLE,)
    assert record.command == " ".join(["python -m benchmarks.step", *quick])
    assert (kept.parents[1] / record.plot).stat().st_size > 1000
    machine = json.loads(kept.read_text())["machine"]
    assert machine["cores"] >= 1 and machine["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert machine["threads"] == 1 and machine["gpu"] is None


def test_without_a_gpu(folders, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert common.main("Title.", "step", measure, argv=["--device", "cuda"]) == 1
    assert "no GPU" in capsys.readouterr().err
    assert not list(folders.iterdir())


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        "A caption.",
        "",
        "| case | seconds |",
        "| --- | --- |",
        "| small | 1.0 |",
        "| large | 2.0 |",
    ]


def test_candidates_take_turns():
    calls = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warm_up=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_the_ratio_is_that_of_the_same_round():
    timings = Timings({"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 1.0]})
    assert timings.median("a") == 3.0
    assert timings.ratio("b", "a") == 2.0


def test_arguments():
    args = arguments("Title.", "step").parse_args(["--quick", "--threads", "3"])
    assert args.quick and args.threads == 3 and args.json is None and args.device == "cpu"
