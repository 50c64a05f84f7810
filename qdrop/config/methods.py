"""Methods by one word: `quant.method` stands for settings of the section `quant`, as a preset does for a schedule.

A method says how things are learned; bits, data and schedule are free. What an entry does not name is as in QDrop.
The terms of the settings are explained beside the fields, in quant.py; docs/methods.md has the table for people.
"""

from dataclasses import dataclass
from typing import Any

from qdrop.config.merge import merge


@dataclass(frozen=True)
class Method:
    """An entry of the table."""

    title: str
    """What the log calls it."""
    source: str
    """Who described it, and where."""
    settings: dict[str, Any]
    """Settings of the section `quant`, nested."""


QDROP: dict[str, Any] = {
    "a_qconfig": {"observer": "MSEObserver"},
    "w_qconfig": {"quantizer": "AdaRoundFakeQuantize"},
    "recon": {
        "granularity": "block",
        "objective": "squared_error",
        "correct_statistics": 0,
        "learn_scales": "with_rounding",
        "weight_scale_lr": None,
        "input": "quantized",
        "input_prob": None,
        "drop_prob": 0.5,
    },
    "network": None,
}
"""All that any method sets, as the published method has it."""

NEVER = {"drop_prob": 1.0, "input_prob": None}
"""Every activation is quantized."""
INPUTS_ONLY = {"drop_prob": 0.0, "input_prob": 1.0, "learn_scales": "after"}
"""While the rounding learns, a unit's activations are in full precision, and its inputs are not."""
WEIGHTS_FIRST = INPUTS_ONLY | {"input": "weights"}
"""While the rounding learns, all activations of the network are in full precision."""

METHODS: dict[str, Method] = {
    "qdrop": Method("QDrop", "Wei et al., ICLR 2022", {}),
    "qdrop-e2e": Method(
        "QDrop, then end to end",
        "this project, docs/how_it_works.md",
        {"a_qconfig": {"observer": "ClippingObserver"}, "network": {}},
    ),
    "nearest": Method("rounding to the nearest", "-", {"recon": None, "network": None}),
    "adaround": Method("AdaRound", "Nagel et al., ICML 2020", {"recon": WEIGHTS_FIRST | {"granularity": "layer"}}),
    "brecq": Method("BRECQ", "Li et al., ICLR 2021", {"recon": WEIGHTS_FIRST}),
    "case1": Method("QDrop's case 1", "Wei et al., ICLR 2022, section 3", {"recon": WEIGHTS_FIRST}),
    "case2": Method("QDrop's case 2, without drop", "Wei et al., ICLR 2022, section 3", {"recon": NEVER}),
    "case3": Method("QDrop's case 3", "Wei et al., ICLR 2022, section 3", {"recon": INPUTS_ONLY}),
    "pdquant": Method(
        "PD-Quant",
        "Liu et al., CVPR 2023",
        {"recon": {"objective": "prediction_difference", "correct_statistics": 500}},
    ),
    "geniem": Method(
        "GENIE-M",
        "Jeon et al., CVPR 2023",
        {"w_qconfig": {"quantizer": "AdaRoundLSQFakeQuantize"}, "recon": {"weight_scale_lr": 1e-4}},
    ),
    "mrecg": Method("MRECG with QDrop", "Ma et al., CVPR 2023", {"recon": {"granularity": "mixed"}}),
    "flexround": Method(
        "FlexRound with QDrop", "Lee et al., ICML 2023", {"w_qconfig": {"quantizer": "FlexRoundFakeQuantize"}}
    ),
}
"""The table."""

BY_DROP = ("qdrop", "case2", "qdrop-e2e")
"""Methods that the probability of the drop, and whether a stage follows, tell apart."""


def settings_of(name: str) -> dict[str, Any]:
    """All settings that a method stands for, nested."""
    return merge(QDROP, METHODS[name].settings)


def method_of(quant: Any) -> str | None:
    """The first method that settings of the section `quant` are of, whatever finds the ranges; None: there is none."""
    learned = {name: {k: v for k, v in settings_of(name).items() if k != "a_qconfig"} for name in METHODS}
    return next((name for name, settings in learned.items() if _follows(quant, settings)), None)


def title_of(quant: Any) -> str:
    """What the method of the settings of a section `quant` is called."""
    name = method_of(quant)
    return "a method of its own" if name is None else METHODS[name].title


def called(quant: Any) -> str:
    """The same in a table's few words, where what only the drop tells apart is named by it."""
    recon = quant.recon
    if recon is None:
        return "round-to-nearest"
    name = method_of(quant)
    if name not in (None, *BY_DROP):
        return METHODS[name].title
    units = {0.5: "QDrop", 1.0: "no drop"}.get(recon.drop_prob, f"drop_prob {recon.drop_prob}")
    return f"{units} e2e" if quant.network else units


def _follows(section: Any, settings: dict[str, Any]) -> bool:
    """Whether a section has all of these; of none at all, whether it is there."""
    return section is not None and all(
        _follows(getattr(section, key), value) if isinstance(value, dict) else getattr(section, key) == value
        for key, value in settings.items()
    )
