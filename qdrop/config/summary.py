"""Which method settings ask for, in a line."""

from qdrop.config.methods import title_of
from qdrop.config.schema import PRESETS, QuantConfig, ReconConfig


def summary(quant: QuantConfig, units: int) -> str:
    """Bits, method, preset and iterations: `W2A4 by QDrop, preset fast: 1,000 iterations for each of 10 units`.

    Args:
        quant: The settings.
        units: How many units the network has.
    """
    bits = f"W{quant.w_qconfig.bit}A{quant.a_qconfig.bit if quant.a_qconfig else 32}"
    if quant.recon is None:
        return f"{bits} by rounding to the nearest: nothing is learned, as recon is null"
    learned = f"{title_of(quant)}, {_preset(quant.recon)}"
    return f"{bits} by {learned}: {quant.recon.iters:,} iterations for each of {units} units"


def _preset(recon: ReconConfig) -> str:
    """The preset that a reconstruction follows: all of it, its rates alone, or none."""
    for name, preset in PRESETS.items():
        if all(getattr(recon, key) == value for key, value in preset.items() if key != "iters"):
            return f"preset {name}" if recon.iters == preset["iters"] else f"rates of preset {name}"
    return "rates of its own"
