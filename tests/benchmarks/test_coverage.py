"""Which networks can be quantized: ten of them, and what the page says of one that cannot."""

import pytest

from benchmarks import coverage
from benchmarks.coverage_case import Case, examine


@pytest.mark.slow
def test_quick():
    cases = list(coverage.run(coverage.QUICK))
    assert [case.name for case in cases] == list(coverage.QUICK)
    assert {case.name: coverage.failures(case) for case in cases} == {name: [] for name in coverage.QUICK}
    assert all(case.integer >= 0.999 for case in cases)


def test_one_network(tmp_path):
    pytest.importorskip("onnxruntime")
    case = examine("torchvision:squeezenet1_1", tmp_path)
    assert coverage.failures(case) == []
    assert case.size == 96 and case.parameters > 1e6 and case.share > 0.9 and case.integer == 1
    assert case.cosine > 0.8


def test_an_unknown_network_is_told(tmp_path):
    case = examine("timm:no_such_network", tmp_path)
    assert "no_such_network" in case.planned and coverage.failures(case) == [f"not planned: {case.planned}"]


def test_page():
    good = Case("torchvision:a", 2_000_000, 96, "", 0.9, 1.0, 0.99, 0.99, "", "", 1e-6)
    worse = Case("timm:b", 1_000_000, 96, "", 0.9, 0.5, 0.5, 0.99, "", "", 1e-6)
    text = coverage.page([good, worse, Case("timm:c", planned="GraphError: why")])
    assert "| planned | 2 | 66.7% |" in text
    assert "- `timm:b`: cosine 0.500, of the naive reference 0.990.\n" in text
    assert "- `timm:c`: not planned: GraphError: why.\n" in text and "`torchvision:a`:" not in text


def test_every_name_is_of_a_library_and_once():
    names = coverage.NETWORKS.read_text(encoding="utf-8").split()
    assert len(names) == len(set(names)) > 200
    assert {name.partition(":")[0] for name in names} == {"timm", "torchvision"}
    assert set(coverage.QUICK) <= set(names)
