"""How long a run takes: measured on its first iterations, told once, in words."""

import pytest
import torch
from networks import images, network, quantized

from qdrop.solver import estimate
from qdrop.solver.estimate import Estimate, duration, in_words, unit_costs
from qdrop.solver.progress import UnitProgress, timed
from qdrop.solver.unit import Step


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved: `clock[0] += 1`."""
    now = [100.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    return now


def test_what_is_left_is_in_proportion_to_what_is_done(clock):
    """Of 100 the first iteration, which took long, is not measured; the next five take two seconds for each 1."""
    clock[0] += 50
    waits = []
    asked = Estimate(100.0, iterations=5, seconds=3.0)
    told = []
    for done in range(1, 9):
        told.append(asked.left(float(done), lambda: waits.append(1)))
        clock[0] += 2
    assert told == [None] * 5 + [(100 - 6) * 2.0] + [None] * 2
    assert len(waits) == 2


def test_an_estimate_takes_some_time_too(clock):
    asked = Estimate(100.0, iterations=1, seconds=3.0)
    told = []
    for done in range(1, 7):
        told.append(asked.left(float(done), lambda: None))
        clock[0] += 1
    assert told == [None] * 3 + [(100 - 4) * 1.0] + [None] * 2


def test_units_cost_in_the_order_of_the_plan_and_stay_as_they_are():
    graph, plan = quantized(network("residual"))
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    costs = unit_costs(graph, plan, {"x": images()}, torch.device("cpu"))
    assert list(costs) == [unit.module for unit in plan.units]
    assert all(cost > 0 for cost in costs.values())
    assert all(torch.equal(before[key], value) for key, value in graph.state_dict().items())


def told(caplog, clock, seconds: float) -> list[str]:
    """What is said of a run of two units of 5,000 iterations, of which each takes `seconds`."""
    with caplog.at_level("INFO", "qdrop"), UnitProgress({"a": 1.0, "b": 3.0}, 5000) as bar:
        for iteration in range(1, 51):
            bar("a", Step(iteration, {"squared_error": torch.tensor(1.0), "rounding": torch.tensor(0.0)}))
            clock[0] += seconds
    return [record.message for record in caplog.records]


def test_a_long_run_says_once_how_long_it_takes_and_what_would_be_faster(caplog, clock):
    """The second unit costs three times the first: 20,000 seconds in all, and a fifth of that with 1,000 iterations."""
    (line,) = told(caplog, clock, seconds=1.0)
    assert line == (
        "some 5 h 33 min to go on this machine: 5,000 iterations for each of 2 units;"
        " recon.preset=fast takes 1,000, some 67 min"
    )


def test_of_a_short_run_nothing_is_said(caplog, clock):
    assert told(caplog, clock, seconds=0.002) == []


@pytest.mark.parametrize(
    ("seconds", "told"), [(1.0, ["all: some 13 min to go on this machine: 800 iterations"]), (0.01, [])]
)
def test_a_long_stage_says_once_how_long_it_takes(seconds, told, caplog, clock):
    with caplog.at_level("INFO", "qdrop"):
        for _ in timed(range(800), "all", 800, torch.device("cpu")):
            clock[0] += seconds
    assert [record.message for record in caplog.records] == told


def test_where_nothing_is_faster_nothing_is_offered():
    assert in_words(7200, 1000, 10) == "some 2 h 0 min to go on this machine: 1,000 iterations for each of 10 units"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0.2 s"),
        (89, "89 s"),
        (600, "10 min"),
        (5399, "1 h 30 min"),
        (12000, "3 h 20 min"),
        (190800, "2 days 5 h"),
    ],
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words
