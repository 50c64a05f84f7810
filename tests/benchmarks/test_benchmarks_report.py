"""The page of benchmarks is what the records say."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.common import HERE
from benchmarks.records import Record

RECORDS = sorted((HERE / "results").glob("*.json"))


def test_the_page_is_up_to_date():
    assert (HERE / "README.md").read_text(encoding="utf-8") == report.report(HERE), "run python -m benchmarks.report"


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_a_record_is_of_a_full_run_that_can_be_repeated(file):
    record = Record.read(file)
    assert record.benchmark == file.stem and not record.quick and "--quick" not in record.command
    assert record.figures and all(isinstance(value, int | float) for value in record.figures.values())
    assert record.plot is None or (HERE / record.plot).exists()
    module = re.fullmatch(r"python -m benchmarks\.(\w+).*", record.command)[1]
    assert (HERE / f"{module}.py").exists()


def test_no_machine_paths_on_the_page():
    text = (HERE / "README.md").read_text(encoding="utf-8")
    assert not [word for word in ("/home/", "/work", "/tmp", str(Path.home()), sys.prefix) if word in text]


def test_a_broken_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/step.json").write_text('{"tables": [], "notes": []}')
    assert report.main([]) == 1
    assert "expected what a benchmark wrote there" in capsys.readouterr().err
