"""The comparison job: a row per setting, a table, a picture."""

import shutil
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from qdrop.commands.compare import DEFAULT, SETTINGS, compare, draw, main, table
from qdrop.config import load_config

CONFIG = Path(__file__).parents[2] / "exp" / "quickstart" / "config.yaml"
SHORT = ["quant.recon.iters=2", "quant.calibrate=64", "quant.calibrate_range=64", "data.val_limit=50"]
SETTINGS_OF_RUNS = [*SHORT, "quant.network.iters=3", "quant.recon.warm_up=0.3", "quant.recon.precision=tf32"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder after the command, whether its runs computed in tf32, as a whole and in their iterations, its table."""
    folder, entered, stepped = tmp_path_factory.mktemp("compared"), [], []

    def noting(seen):
        @contextmanager
        def layer_arithmetic(tf32=False):
            seen.append(tf32)
            yield

        return layer_arithmetic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdrop.pipeline.layer_arithmetic", noting(entered))
        patch.setattr("qdrop.solver.recon.layer_arithmetic", noting(stepped))
        with redirect_stdout(StringIO()) as text:
            assert main(["--config", str(CONFIG), *SETTINGS_OF_RUNS, f"process.out={folder}"]) == 0
    return folder, entered, stepped, table_in(text.getvalue())


def test_rows_table_and_picture(compared):
    folder, *_ = compared
    with Image.open(folder / "comparison.png") as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 5
    assert len(list(folder.glob("*/result.json"))) == 2 * len(SETTINGS)


def test_runs_differ_in_bits_and_method_alone(compared, tmp_path):
    folder, *_ = compared
    rows = compare(CONFIG, SETTINGS_OF_RUNS, DEFAULT, folder)  # they are complete: it only tells them
    assert [row.name for row in rows] == ["W4A4", "W3A3", "W2A4", "W2A2"]
    for row in rows:
        assert list(row.figures)[2:] == ["QDrop", "QDrop, then end to end"]
        names = [f"{row.name.lower()}-{method}" for method in DEFAULT]
        units, ours = (load_config(folder / name / "config.resolved.yaml").quant for name in names)
        assert (units.network, units.recon.warm_up) == (None, 0.3)
        assert (ours.network.iters, ours.recon) == (3, units.recon)
    console = Console(record=True, width=120)
    console.print(table(rows, "title"))
    text = console.export_text()
    assert all(name in text for name in ("W2A2", "round-to-nearest", "QDrop"))
    draw(rows, "title", tmp_path / "again.svg")
    assert "<svg" in (tmp_path / "again.svg").read_text()


def test_each_run_is_as_the_main_job_would_do_it(compared):
    folder, entered, stepped, _ = compared
    runs = 2 * len(SETTINGS)
    assert entered == runs * [False] and stepped and all(stepped)
    logs = [file.read_text() for file in folder.glob("*/run.log")]
    assert len(logs) == runs and all(log.count("; results in ") == 1 for log in logs)


def test_again_it_tells_the_same_at_once(compared, tmp_path, monkeypatch, capsys):
    folder, *_, shown = compared
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "comparison.png").unlink()
    monkeypatch.setattr("qdrop.pipeline.reconstruct", None)
    assert main(["--config", str(CONFIG), *SETTINGS_OF_RUNS, f"process.out={again}"]) == 0
    assert shown == table_in(capsys.readouterr().out) and len(shown) == len(SETTINGS)
    assert (again / "comparison.png").is_file()


def table_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("│ W")]


def test_a_method_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        main(["--methods", "qdrap", "--config", str(CONFIG)])
    assert "invalid choice: 'qdrap'" in capsys.readouterr().err
