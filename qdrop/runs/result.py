"""What a run found out: `result.json` in its folder."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qdrop.config import Config
from qdrop.tasks.task import Figures

ENDS = {"full": "_full", "nearest": "_nearest", "outcome": ""}
"""What the names of figures end in, where results are written, by the field that holds them."""


@dataclass(frozen=True)
class Result:
    """What a run found out."""

    model: str
    """Network."""
    data: str
    """What it was evaluated on."""
    w_bit: int
    """Bits of the weights."""
    a_bit: int | None
    """Bits of the activations; None: not quantized."""
    full: Figures
    """Of the full-precision network; in the file, and in :meth:`to_dict`, each by its name and `_full`."""
    nearest: Figures
    """With everything rounded to the nearest; in the file, each by its name and `_nearest`."""
    outcome: Figures
    """Of the outcome; in the file, each by its name, as `top1`."""
    drop_prob: float | None
    """Probability of keeping a quantized activation during reconstruction; None: no reconstruction."""
    iters: int
    """Iterations per unit; 0: no reconstruction."""
    calibration_images: int
    """Images that were calibrated and reconstructed on."""
    validation_images: int
    """Images that the figures were measured on."""
    seed: int
    """Seed of the run."""
    seconds_calibrate: float
    """Wall time of calibration."""
    seconds_reconstruct: float
    """Wall time of reconstruction; of an interrupted run, with that of the units finished before."""
    peak_memory_mb: float
    """Most memory held."""
    network_iters: int = 0
    """Iterations over the whole network, after the units; 0: none, as in files of versions that had no such stage."""

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        full: Figures,
        nearest: Figures,
        outcome: Figures,
        calibration_images: int,
        validation_images: int,
        seconds_calibrate: float,
        seconds_reconstruct: float,
        peak_memory_mb: float,
    ) -> Self:
        """What was measured, in the fields of the same names, beside the settings it was measured with."""
        quant, recon = config.quant, config.quant.recon
        return cls(
            model=config.model.type,
            data=config.data.name or config.data.type,
            w_bit=quant.w_qconfig.bit,
            a_bit=quant.a_qconfig.bit if quant.a_qconfig else None,
            full=full,
            nearest=nearest,
            outcome=outcome,
            drop_prob=recon.drop_prob if recon else None,
            iters=recon.iters if recon else 0,
            calibration_images=calibration_images,
            validation_images=validation_images,
            seed=config.process.seed,
            seconds_calibrate=seconds_calibrate,
            seconds_reconstruct=seconds_reconstruct,
            peak_memory_mb=peak_memory_mb,
            network_iters=quant.network.iters if recon and quant.network else 0,
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        """The result in a `result.json`.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no JSON.
            TypeError: If its fields are others.
        """
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            TypeError: If its fields are others.
        """
        if not isinstance(data, dict):
            raise TypeError(f"a result is a {type(data).__name__}; expected an object")
        names = [key.removesuffix("_full") for key in data if key.endswith("_full")]
        if not names:
            raise TypeError("no figure of the full-precision network; expected NAME_full, as top1_full")
        rest = dict(data)
        rest |= {field: _taken(rest, names, end) for field, end in ENDS.items()}
        return cls(**rest)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, the figures in place of the three fields that hold them."""
        data: dict[str, Any] = {}
        for name, value in asdict(self).items():
            end = ENDS.get(name)
            data |= {name: value} if end is None else {f"{key}{end}": figure for key, figure in value.items()}
        return data

    @property
    def metric(self) -> str:
        """Name of the figure that networks are compared by."""
        return next(iter(self.full))

    @property
    def compared(self) -> tuple[float, float, float]:
        """That figure of full precision, of round-to-nearest and of the outcome."""
        return self.full[self.metric], self.nearest[self.metric], self.outcome[self.metric]

    @property
    def bits(self) -> str:
        """As the paper writes them: W2A4."""
        return f"W{self.w_bit}A{self.a_bit or 32}"

    def figures(self) -> dict[str, Any]:
        """All but what it cost: the same for every run of the same settings."""
        costs = ("seconds_calibrate", "seconds_reconstruct", "peak_memory_mb")
        return {name: value for name, value in self.to_dict().items() if name not in costs}


def _taken(data: dict[str, Any], names: Iterable[str], end: str) -> dict[str, float]:
    """Figures of these names with this end to them, out of plain data, where they no longer are then."""
    try:
        return {name: data.pop(f"{name}{end}") for name in names}
    except KeyError as error:
        raise TypeError(f"no figure {error}") from None
