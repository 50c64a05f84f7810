"""The table of finished runs: a text file with a line of JSON for each, its command, settings and figures included.

rows = read(Path("exp/results.jsonl"))
write(Path("exp/results.jsonl"), [*rows, row_of(Path("runs/resnet18-w2a4-0a1b2c3d"))])
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdrop.config import Config, config_from_dict, load_config, what_counts
from qdrop.config.methods import called
from qdrop.errors import QdropError, first_line
from qdrop.files import write_file
from qdrop.runs.result import Result
from qdrop.runs.run_folder import PLACES, SETTINGS, portable

OF_THE_MACHINE = ("arguments", "directory")
"""What `env.json` holds of the machine of a run: the command in the row stands for it."""


class TableError(QdropError, ValueError):
    """A table, or what is to become a row of it, that cannot be read; names the file and the line."""


@dataclass(frozen=True)
class Row:
    """A finished run."""

    run: str
    """Its name: of its folder, or where it was recorded."""
    command: str
    """What does it again, with `...` for where data and weights lie on a machine."""
    result: Result
    """What it found out."""
    settings: dict[str, Any]
    """All settings, as plain data; of paths the last part."""
    environment: dict[str, Any]
    """Versions, device, revision, checksum of the weights."""
    units: list[dict[str, Any]]
    """Of each unit: loss before and after, share of weights not rounded to the nearest, seconds, memory in MB."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, a line of the table."""
        return {**asdict(self), "result": self.result.to_dict()}

    @cached_property
    def config(self) -> Config:
        """The settings."""
        return config_from_dict(self.settings)

    @property
    def method(self) -> str:
        """What its method is called."""
        return called(self.config.quant)

    @cached_property
    def identity(self) -> str:
        """What no two rows of a table have in common: settings, seed, weights and images, wherever those lay."""
        places = {".".join(place) for place in PLACES}
        settings = {key: value for key, value in what_counts(self.config).items() if key not in places}
        weights = (self.environment.get("weights") or {}).get("sha256")
        return json.dumps([settings, weights, self.result.data, self.result.validation_images])


def read(path: Path) -> list[Row]:
    """The rows of a table; empty if there is no such file.

    Raises:
        TableError: If a line is no row.
        OSError: If it cannot be read.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            rows.append(Row(**{**data, "result": Result.from_dict(data["result"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise TableError(f"{path}:{number}: not a row of the table: {first_line(error)}") from error
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a table, sorted by network, bits and name.

    Raises:
        OSError: If it cannot be written.
    """

    def place(row: Row) -> tuple[str, int, int, str]:
        return row.result.model, row.result.w_bit, row.result.a_bit or 32, row.run

    write_file(path, "".join(f"{json.dumps(row.to_dict())}\n" for row in sorted(rows, key=place)))


def row_of(folder: Path) -> Row:
    """The row of a finished run, still without its command.

    Raises:
        TableError: If the folder holds no finished run, or one that cannot be read.
    """
    result = _result_of(folder)
    try:
        config = load_config(folder / SETTINGS)
        environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in environment.items() if key not in OF_THE_MACHINE}
        units = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, AttributeError) as error:
        raise TableError(f"{folder}: the record of this run cannot be read: {first_line(error)}") from error
    return Row(folder.resolve().name, "", result, portable(config), kept, units)


def _result_of(folder: Path) -> Result:
    """What a finished run found out.

    Raises:
        TableError: If the folder holds no finished run, or one of another version.
    """
    file = folder / "result.json"
    try:
        return Result.read(file)
    except FileNotFoundError:
        raise TableError(f"{folder}: no finished run; expected a run folder with its result.json") from None
    except (OSError, ValueError, TypeError) as error:
        raise TableError(f"{file}: not the result of a run: {first_line(error)}") from error
