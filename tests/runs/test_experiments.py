"""The table of experiments, the page made from it, and what adds a finished run to both."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qdrop.cli import main
from qdrop.config import config_from_dict, config_to_dict, load_config, save_config
from qdrop.runs.experiments import APART, changes, experiments
from qdrop.runs.page import page, settings
from qdrop.runs.result import Result
from qdrop.runs.table import read

EXP = Path(__file__).parents[2] / "exp"
ROWS = read(EXP / "results.jsonl")


def test_the_committed_page_is_up_to_date():
    assert (EXP / "README.md").read_text(encoding="utf-8") == page(EXP, ROWS)


def test_the_page_can_be_read():
    text = (EXP / "README.md").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) < 200
    assert "- | - | - | - |" not in text


def test_no_run_is_twice_in_the_table():
    assert len({row.run for row in ROWS}) == len({row.identity for row in ROWS}) == len(ROWS) >= 65


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.run)
def test_a_recorded_command_stands_for_the_settings_beside_it(row):
    file, *words = shlex.split(row.command)[3:]
    config = load_config(EXP.parent / file, [word for word in words if not word.endswith("=...")])
    assert changes(config, row.config) == []
    result = row.result
    assert (result.model, result.seed) == (config.model.type, config.process.seed)
    assert (result.w_bit, result.a_bit) == (config.quant.w_qconfig.bit, config.quant.a_qconfig.bit)
    recon = config.quant.recon
    assert (result.iters, result.drop_prob) == ((recon.iters, recon.drop_prob) if recon else (0, None))
    assert len(row.units) > 5 or recon is None
    assert row.environment["packages"]["torch"] and row.environment["weights"]["sha256"]


def test_every_published_figure_is_in_the_page():
    text = (EXP / "README.md").read_text(encoding="utf-8")
    published = json.loads((EXP / "published.json").read_text())["imagenet"]
    for model, figures in published.items():
        if model != "source":
            shown = " | ".join(f"{figures[bits]:.2f}" for bits in ("full", "w4a4", "w3a3", "w2a4", "w2a2"))
            assert f"| {model} | `{figures['folder']}` | {shown} |" in text
            for bits in ("w4a4", "w3a3", "w2a4", "w2a2"):
                assert load_config(EXP / bits / figures["folder"] / "config.yaml").model.type == model


GENIEM = {"w_qconfig.quantizer": "AdaRoundLSQFakeQuantize", "recon.weight_scale_lr": 1e-4}
FIGURES = ({"top1": 81.0}, {"top1": 15.0}, {"top1": 66.0})
BASE = Result("resnet20", "CIFAR-10", 2, 2, *FIGURES, 0.5, 10, 64, 100, 1, 1.0, 1.0, 1.0)


@pytest.fixture
def exp(tmp_path) -> Path:
    """A folder of experiments: ResNet-20 at W2A2 and W4A4, with 10 iterations."""
    folder = tmp_path / "exp"
    for bit in (2, 4):
        place = folder / f"w{bit}a{bit}"
        place.mkdir(parents=True)
        bits = f"a_qconfig: {{bit: {bit}}}, w_qconfig: {{bit: {bit}}}"
        text = f"quant: {{{bits}, recon: {{iters: 10}}}}\nmodel: {{type: resnet20}}\ndata: {{type: cifar10}}"
        (place / "config.yaml").write_text(text)
    return folder


def finished(exp: Path, name: str, overrides: dict | None = None, **figures) -> Path:
    """The folder of a finished run of the experiment at W2A2, or at the bits given."""
    folder = exp.parent / "runs" / name
    folder.mkdir(parents=True)
    result = Result.from_dict(BASE.to_dict() | figures)
    place = exp / f"w{result.w_bit}a{result.a_bit}" / "config.yaml"
    fixed = {"quant.recon.drop_prob": result.drop_prob, "process.seed": result.seed}
    words = [f"{key}={json.dumps(value)}" for key, value in (fixed | (overrides or {})).items()]
    save_config(load_config(place, words), folder / "config.resolved.yaml")
    (folder / "result.json").write_text(json.dumps(result.to_dict()))
    (folder / "env.json").write_text(json.dumps({"device": "cpu", "arguments": ["secret"], "directory": "/home/me"}))
    (folder / "log.jsonl").write_text('{"unit": "conv1", "loss_before": 2.0, "loss_after": 1.0}\n')
    return folder


def recorded(exp: Path, *runs: Path) -> str:
    """The page after runs were added."""
    assert main(["record", str(exp), *map(str, runs)]) == 0
    return (exp / "README.md").read_text()


def lines(text: str, method: str) -> list[str]:
    return [line for line in text.splitlines() if f" | {method} | " in line and "quant." not in line]


def test_means_over_seeds_and_a_dash_where_nothing_was_measured(exp):
    rate = {"quant.recon.round_lr": 0.02}
    text = recorded(
        exp,
        finished(exp, "a", rate),
        finished(exp, "b", rate, seed=2, top1=68.0),
        finished(exp, "c", rate, top1=60.0, drop_prob=1.0),
        finished(exp, "d", top1=80.0, w_bit=4, a_bit=4, top1_nearest=70.0),
    )
    nothing, rates = lines(text, "QDrop")
    assert nothing == "| 1 | QDrop | 10 |  | 80.00 (1) | - |"
    assert rates == "| 2 | QDrop | 10 | `round_lr=0.02` | - | 67.00 ± 1.41 (2) |"
    assert lines(text, "no drop") == ["| 3 | no drop | 10 | `round_lr=0.02` | - | 60.00 (1) |"]
    assert lines(text, "round-to-nearest") == ["|  | round-to-nearest |  |  | 70.00 (1) | 15.00 ± 0.00 (2) |"]
    assert "# 2: W2A2 seeds 1 2\nqdrop quantize --config exp/w2a2/config.yaml quant.recon.round_lr=0.02" in text


def test_each_method_has_a_row_of_its_own(exp):
    geniem = {f"quant.{key}": value for key, value in GENIEM.items()}
    text = recorded(exp, finished(exp, "a"), finished(exp, "b", geniem, top1=60.0))
    assert lines(text, "QDrop") == ["| 1 | QDrop | 10 |  | 66.00 (1) |"]
    assert lines(text, "GENIE-M") == ["| 2 | GENIE-M | 10 |  | 60.00 (1) |"]


def test_a_row_holds_all_and_nothing_of_the_machine(exp):
    recorded(exp, finished(exp, "a", {"data.path": "/home/me/cifar", "model.path": "/home/me/net.pth"}))
    (row,) = read(exp / "results.jsonl")
    assert (
        row.result == BASE
        and row.run == "a"
        and row.units == [{"unit": "conv1", "loss_before": 2.0, "loss_after": 1.0}]
    )
    assert row.command == "qdrop quantize --config exp/w2a2/config.yaml data.path=... model.path=... process.seed=1"
    assert row.environment == {"device": "cpu"} and row.config.data.path == "cifar"
    assert "/home" not in (exp / "results.jsonl").read_text()


def test_a_run_done_again_takes_the_place_of_the_first(exp):
    recorded(exp, finished(exp, "a"), finished(exp, "b", seed=2))
    text = recorded(exp, finished(exp, "c", {"data.path": "/elsewhere"}, top1=50.0))
    assert sorted(row.run for row in read(exp / "results.jsonl")) == ["b", "c"]
    assert "58.00 ± 11.31 (2)" in text
    assert recorded(exp) == text


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("quant.recon.precision", "bfloat16", "`precision=bfloat16`"),
        ("quant.recon.cache.dtype", "float16", "`dtype=float16`"),
        ("quant.recon.granularity", "layer", "`granularity=layer`"),
        ("quant.recon.weight", 0.1, "`weight=0.1`"),
        ("quant.recon.b_range", [10, 2], "`b_range=...`"),
        ("quant.w_qconfig.observer", "MinMaxObserver", "`observer=MinMaxObserver`"),
        ("quant.overrides", {"layer1.*": {"w_bit": 4}}, "`overrides=...`"),
        ("data.val_limit", 50, "`val_limit=50`"),
        ("data.augment", False, "`augment=False`"),
        ("model.kwargs", {"width": 2}, "`kwargs=...`"),
    ],
)
def test_another_experiment_has_a_row_of_its_own(key, value, told, exp):
    text = recorded(exp, finished(exp, "a"), finished(exp, "b", {key: value}, seed=2, top1=60.0))
    assert lines(text, "QDrop") == ["| 1 | QDrop | 10 |  | 66.00 (1) |", f"| 2 | QDrop | 10 | {told} | 60.00 (1) |"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/elsewhere"),
        ("model.path", "/elsewhere.pth"),
        ("data.num_workers", 0),
        ("process.device", "cuda"),
        ("process.out", "/tmp/x"),
        ("quant.recon.cache.device", "disk"),
        ("quant.recon.compile", "off"),
    ],
)
def test_where_it_ran_does_not_matter(key, value, exp):
    text = recorded(exp, finished(exp, "a"), finished(exp, "b", {key: value}, seed=2, top1=68.0))
    assert lines(text, "QDrop") == ["| 1 | QDrop | 10 |  | 67.00 ± 1.41 (2) |"]


def test_other_images_have_a_table_of_their_own(exp):
    text = recorded(
        exp, finished(exp, "a"), finished(exp, "b", validation_images=50), finished(exp, "c", data="photos")
    )
    assert [line for line in text.splitlines() if line.startswith("### ")] == 2 * [
        "### resnet20: CIFAR-10 (50 images)",
        "### resnet20: CIFAR-10 (100 images)",
        "### resnet20: photos (100 images)",
    ]


def test_bits_beside_those_of_the_paper_have_a_column(exp):
    (exp / "w3a8").mkdir()
    (exp / "w3a8" / "config.yaml").write_text(
        "quant: {a_qconfig: {bit: 8}, w_qconfig: {bit: 3}, recon: {iters: 10}}\n"
        "model: {type: resnet20}\ndata: {type: cifar10}"
    )
    text = recorded(exp, finished(exp, "a"), finished(exp, "b", w_bit=3, a_bit=8, top1=70.0))
    assert "| W2A2 | W3A8 |" in text and lines(text, "QDrop") == ["| 1 | QDrop | 10 |  | 66.00 (1) | 70.00 (1) |"]


def test_what_cannot_be_recorded_is_told_and_changes_nothing(exp, tmp_path, caplog):
    before = recorded(exp, finished(exp, "a"))
    table = (exp / "results.jsonl").read_bytes()
    foreign = finished(exp, "foreign", {"model.type": "resnet56"}, seed=3)
    broken = finished(exp, "broken", seed=4)
    (broken / "result.json").write_text('{"top1": 3}')
    unread = finished(exp, "unread", seed=5)
    (unread / "env.json").write_text("{")
    for run, told in (
        (foreign, "resnet56 on cifar10 at W2A2 is none of these experiments"),
        (broken, f"{broken / 'result.json'}: not the result of a run"),
        (unread, f"{unread}: the record of this run cannot be read"),
        (tmp_path, f"{tmp_path}: no finished run"),
    ):
        caplog.clear()
        assert main(["record", str(exp), str(run)]) == 1
        assert told in caplog.text and "Traceback" not in caplog.text
    assert main(["record", str(tmp_path / "absent")]) == 1
    assert (exp / "results.jsonl").read_bytes() == table and (exp / "README.md").read_text() == before


def test_broken_published_figures_are_told(exp, caplog):
    (exp / "published.json").write_text("{")
    assert main(["record", str(exp)]) == 1
    assert "published.json: not valid JSON" in caplog.text


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"result": {"top1": 3}}'])
def test_a_broken_line_of_the_table_is_told(line, exp, caplog):
    recorded(exp, finished(exp, "a"))
    with (exp / "results.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert main(["record", str(exp)]) == 1
    assert "results.jsonl:2: not a row of the table" in caplog.text


def test_the_table_needs_neither_the_main_job_nor_its_data():
    loaded = "import sys, qdrop.runs.experiments; print(*sys.modules)"
    env = os.environ | {"PYTHONPATH": str(EXP.parent)}
    done = subprocess.run([sys.executable, "-c", loaded], env=env, capture_output=True, text=True, check=True)
    assert not {"qdrop.solver.main_imagenet", "qdrop.tasks.classification.datasets"} & set(done.stdout.split())


def test_changes_turn_one_config_into_the_other():
    before = config_from_dict({"quant": {"overrides": {"layer4.*": {"a_bit": 8}}, "recon": {"iters": 5}}})
    after = config_from_dict(
        {"quant": {"overrides": {"layer4.*": {"a_bit": 6}}, "recon": {"iters": 7, "b_range": [9, 1]}}}
    )
    words = [shlex.split(word)[0] for word in changes(before, after)]
    assert config_from_dict(config_to_dict(before), words) == after
    assert not {word.partition("=")[0] for word in words} & APART


def test_every_network_of_the_paper_is_an_experiment_at_all_its_bits():
    found = {experiment.key for experiment in experiments(EXP)}
    published = json.loads((EXP / "published.json").read_text())
    assert {
        (model, kind, w, a)
        for kind, models in published.items()
        for model, figures in models.items()
        if model != "source"
        for w, a in ((4, 4), (3, 3), (2, 4), (2, 2))
        if f"w{w}a{a}" in figures
    } <= found
    for model in published["imagenet"].keys() - {"source"}:
        assert published["imagenet"][model].keys() >= {"w4a4", "w3a3", "w2a4", "w2a2"}


def test_settings_of_a_row_are_those_beside_seed_and_places():
    row = next(row for row in ROWS if row.run == "resnet20-w2a4-fast-nodrop-seed1")
    assert settings(row) == ("quant.recon.iters=1000",) and "quant.method=case2" in row.command
