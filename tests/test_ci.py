"""The test command of continuous integration: it may not pass because golden tests were skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout whose tests always pass, in a folder of its own."""
    folder = tmp_path / "qdrop"
    for name in (".ci", "tests"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "tests" / "run.sh").write_text("echo tested\n")
    return folder


def ci(checkout: Path, **env: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if key not in ("QDROP_FIXTURES", "QDROP_DATA")}
    command = ["bash", str(checkout / ".ci" / "run")]
    return subprocess.run(command, env=inherited | env, capture_output=True, text=True)


def test_without_the_shared_folder_the_tests_run(checkout):
    assert ci(checkout).stdout == "tested\n"


def test_a_shared_folder_without_fixtures_is_an_error(checkout):
    (checkout.parent / "shared" / "fixtures").mkdir(parents=True)
    done = ci(checkout)
    assert done.returncode == 1 and done.stdout == ""
    assert "no golden fixtures in ../shared/fixtures" in done.stderr


def test_fixtures_are_found_where_they_lie(checkout):
    shared = checkout.parent / "shared"
    (shared / "fixtures").mkdir(parents=True)
    (shared / "fixtures" / "a.json").write_text("{}")
    assert ci(checkout).stdout == "tested\n"
    (shared / "fixtures").rename(checkout.parent / "elsewhere")
    assert ci(checkout).returncode == 1
    assert ci(checkout, QDROP_FIXTURES=str(checkout.parent / "elsewhere")).stdout == "tested\n"
