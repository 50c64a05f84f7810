"""What `qdrop report` shows of runs, wherever they lie."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qdrop.cli import main
from qdrop.config import config_from_dict, save_config
from qdrop.runs.result import Result
from qdrop.runs.table import read

EXP = Path(__file__).parents[2] / "exp"
FIGURES = ({"top1": 81.04}, {"top1": 15.2}, {"top1": 66.5})
RESULT = Result("timm:mine", "photos", 3, 8, *FIGURES, 0.5, 1500, 64, 100, 7, 1.0, 1.0, 1.0)


def run(folder: Path, *settings: str, **changes) -> Path:
    """A run folder with some settings, and a result with some changes."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(replace(RESULT, **changes).to_dict()))
    save_config(config_from_dict({}, settings), folder / "config.resolved.yaml")
    (folder / "env.json").write_text("{}")
    (folder / "log.jsonl").touch()
    return folder


def shown(capsys, *paths: Path) -> list[list[str]]:
    """The cells of the rows."""
    assert main(["report", *map(str, paths)]) == 0
    return [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]


def test_a_run(tmp_path, capsys):
    (row,) = shown(capsys, run(tmp_path / "r"))
    figures = ["1,500", "7", "100", "81.04", "15.20", "66.50"]
    assert row[1:] == ["timm:mine", "photos", "W3A8", "QDrop", *figures]


def test_another_metric_has_its_own_names(tmp_path, capsys):
    full, nearest, outcome = ({"AP": ap, "AP50": ap + 20} for ap in (38.4, 1.0, 35.0))
    detector = {"full": full, "nearest": nearest, "outcome": outcome}
    folder = run(tmp_path / "r", **detector)
    assert shown(capsys, folder)[0][-3:] == ["38.40", "1.00", "35.00"]
    recorded = json.loads((folder / "result.json").read_text())
    assert [recorded[name] for name in ("AP_full", "AP50_nearest", "AP50")] == [38.4, 21.0, 55.0]
    assert Result.read(folder / "result.json") == replace(RESULT, **detector)


def test_runs_of_several_folders_in_their_order(tmp_path, capsys):
    one = run(tmp_path / "one", "quant.method=case2")
    run(tmp_path / "many" / "b" / "run", "quant.method=nearest", iters=0, drop_prob=None)
    run(tmp_path / "many" / "a", "quant.recon.drop_prob=0.25", a_bit=None)
    run(tmp_path / "many" / "c", "quant.method=brecq")
    rows = shown(capsys, one, tmp_path / "many")
    assert [row[0] for row in rows[1:]] == ["a", "b/run", "c"]
    assert [row[3] for row in rows] == ["W3A8", "W3A32", "W3A8", "W3A8"]
    assert [row[4] for row in rows] == ["no drop", "drop_prob 0.25", "round-to-nearest", "BRECQ"]


@pytest.mark.parametrize("path", [EXP, EXP / "results.jsonl"])
def test_the_table_of_experiments(path, capsys):
    recorded = read(EXP / "results.jsonl")
    assert [row[-1] for row in shown(capsys, path)] == [f"{row.result.compared[2]:.2f}" for row in recorded]


def test_what_cannot_be_shown_is_told(tmp_path, caplog):
    broken = run(tmp_path / "broken")
    (broken / "result.json").write_text('{"top1": 3}')
    (tmp_path / "empty").mkdir()
    shutil.copy(EXP / "published.json", tmp_path / "notes.txt")
    for path, told in (
        (broken, "result.json: not the result of a run: "),
        (tmp_path / "empty", "no finished run in this folder"),
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "notes.txt", "notes.txt:1: not a row of the table"),
    ):
        caplog.clear()
        assert main(["report", str(path)]) == 1
        assert told in caplog.text and str(path) in caplog.text
