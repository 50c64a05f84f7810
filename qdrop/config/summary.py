"""Which method settings ask for, in a line."""

from qdrop.config.methods import title_of
from qdrop.config.quant import PRESETS, QuantConfig, ReconConfig


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
    then = f", then {quant.network.iters:,} over the whole network" if quant.network else ""
    return f"{bits} by {learned}: {quant.recon.iters:,} iterations for each of {units} units{then}"


def _preset(recon: ReconConfig) -> str:
    """The preset that a reconstruction follows: all of it, its rates alone, or none."""
    followed = {name: [key for key in p if getattr(recon, key) != p[key]] for name, p in PRESETS.items()}
    for name, differing in followed.items():
        if not differing:
            return f"preset {name}"
    for name, differing in followed.items():
        if differing == ["iters"]:
            return f"rates of preset {name}"
    return "rates of its own"
