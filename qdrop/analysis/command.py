"""What the studies share: their arguments, the check for what draws pictures, rows as CSV."""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from qdrop.commands.command import add_settings
from qdrop.extras import extra


def study_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The arguments of every study: where its results go, and settings.

    Args:
        name: Of its module; the folder of its results is named after it.
        doc: The module's docstring, whose first line describes it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m qdrop.analysis.{name}", description=str(doc).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(name), metavar="FOLDER", help="for figures, CSV and runs")
    add_settings(parser)
    return parser


def need_pictures() -> None:
    """See that figures can be drawn, at the start rather than after hours.

    Raises:
        MissingPackageError: If not; says what to install.
    """
    with extra("plots", "pictures"):
        import matplotlib.figure  # noqa: F401


def write(rows: Sequence[Any], file: Path) -> None:
    """Rows, dataclasses of one kind, as CSV; the columns are their fields."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(field.name for field in fields(rows[0]))
        lines.writerows(map(astuple, rows))
