"""README and docs: links lead somewhere, and the settings, commands and benchmarks that they name are there."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from qdrop.cli import COMMANDS
from qdrop.config import Config, NetworkConfig, QuantConfig, config_to_dict, flat

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request):
    return request.param


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_anchors_are_headings(page):
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text_of(page))) <= anchors


def test_settings_exist(page):
    keys = [key for key, _ in flat(config_to_dict(Config(QuantConfig(network=NetworkConfig()))))]
    known = {key.rsplit(".", n)[0] for key in keys for n in range(4)} | {"quant.recon.preset", "quant.method"}
    text = BLOCK.sub(lambda block: "" if block[1] == "python" else block[0], text_of(page))
    named = re.findall(r"(?<![\w./-])((?:quant|model|data|process)\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(])", text)
    assert set(named) <= known


def test_commands_and_modules_exist(page):
    code = "\n".join(found for kind, found in BLOCK.findall(text_of(page)) if kind == "bash")
    assert set(re.findall(r"^qdrop (\w+)", code, re.MULTILINE)) <= {*COMMANDS, "COMMAND"}
    for module in re.findall(r"python -m\s+((?:benchmarks|qdrop)[\w.]*)", text_of(page)):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for script in re.findall(r"\bbash ((?:exp|tests)/\S+\.sh)", code):
        assert (ROOT / script).is_file(), script


def test_python_is_python(page):
    for kind, code in BLOCK.findall(text_of(page)):
        if kind == "python":
            ast.parse(code)


def test_lines_can_be_read(page):
    assert not [line for line in text_of(page).splitlines() if len(line) > 400]


def test_the_readme_is_a_front_page():
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 150 and len(text.split()) < 1500
    files = [link for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", text) if "://" not in link]
    assert files[0] == "benchmarks/plain_step.py"
    first = text.split("## Use it")[0]
    assert "bash exp/quickstart/run.sh" in first and "bash tests/run.sh" in first
