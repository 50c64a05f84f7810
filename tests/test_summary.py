"""The line that says which method settings ask for."""

import pytest

from qdrop.config import config_from_dict
from qdrop.config.summary import summary


@pytest.mark.parametrize(
    ("quant", "line"),
    [
        ({"recon": {}}, "W2A4 by QDrop, preset published: 20,000 iterations for each of 9 units"),
        (
            {"recon": {"preset": "fast"}, "w_qconfig": {"bit": 3}, "a_qconfig": None},
            "W3A32 by QDrop, preset fast: 1,000 iterations for each of 9 units",
        ),
        (
            {"recon": {"preset": "fast", "iters": 300, "drop_prob": 1.0}},
            "W2A4 by QDrop's case 2, without drop, rates of preset fast: 300 iterations for each of 9 units",
        ),
        (
            {"recon": {"round_lr": 0.5, "drop_prob": 1.0, "input_prob": 0.5}},
            "W2A4 by a method of its own, rates of its own: 20,000 iterations for each of 9 units",
        ),
        (
            {"method": "brecq", "recon": {"preset": "fast"}},
            "W2A4 by BRECQ, preset fast: 1,000 iterations for each of 9 units",
        ),
        ({"recon": None}, "W2A4 by rounding to the nearest: nothing is learned, as recon is null"),
    ],
)
def test_the_line_names_bits_method_preset_and_iterations(quant, line):
    assert summary(config_from_dict({"quant": quant}).quant, 9) == line
