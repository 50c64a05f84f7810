"""What a run found out: `result.json` in its folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qdrop.config import Config


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
    top1_full: float
    """Top-1 of the full-precision network, percent."""
    top1_nearest: float
    """Top-1 with everything rounded to the nearest, percent."""
    top1: float
    """Top-1 of the outcome, percent."""
    drop_prob: float | None
    """Probability of keeping a quantized activation during reconstruction; None: no reconstruction."""
    iters: int
    """Iterations per unit; 0: no reconstruction."""
    calibration_images: int
    """Images that were calibrated and reconstructed on."""
    validation_images: int
    """Images that top-1 was measured on."""
    seed: int
    """Seed of the run."""
    seconds_calibrate: float
    """Wall time of calibration."""
    seconds_reconstruct: float
    """Wall time of reconstruction; of an interrupted run, with that of the units finished before."""
    peak_memory_mb: float
    """Most memory held."""

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        top1_full: float,
        top1_nearest: float,
        top1: float,
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
            top1_full=top1_full,
            top1_nearest=top1_nearest,
            top1=top1,
            drop_prob=recon.drop_prob if recon else None,
            iters=recon.iters if recon else 0,
            calibration_images=calibration_images,
            validation_images=validation_images,
            seed=config.process.seed,
            seconds_calibrate=seconds_calibrate,
            seconds_reconstruct=seconds_reconstruct,
            peak_memory_mb=peak_memory_mb,
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        """The result in a `result.json`.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no JSON.
            TypeError: If its fields are others.
        """
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    @property
    def bits(self) -> str:
        """As the paper writes them: W2A4."""
        return f"W{self.w_bit}A{self.a_bit or 32}"

    @property
    def method(self) -> str:
        """In a word or two, as far as drop and iterations tell."""
        if not self.iters:
            return "round-to-nearest"
        return {0.5: "QDrop", 1.0: "no drop"}.get(self.drop_prob or 0.0, f"drop_prob {self.drop_prob}")

    def figures(self) -> dict[str, Any]:
        """All but what it cost: the same for every run of the same settings."""
        costs = ("seconds_calibrate", "seconds_reconstruct", "peak_memory_mb")
        return {name: value for name, value in asdict(self).items() if name not in costs}
