"""All threads against one, on a machine that does nothing else and on a busy one.

How much longer work takes on all threads than on one: a quantizer alone, networks in float and quantized, a step of
reconstruction. Each is measured as the commands run, with threads that wait asleep (OMP_WAIT_POLICY=PASSIVE), and with
OpenMP's own way, in which they spin for a while. The machine is made busy by as many processes as there are threads,
which do nothing but take time; they end with the measurement.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from unittest.mock import patch

import psutil
from matplotlib.figure import Figure

from benchmarks.common import arguments, main
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Table
from benchmarks.timing import printed_by
from qdrop.runtime.openmp import ASLEEP, VARIABLE

POLICIES = {"asleep": ASLEEP, "spinning": None}
"""How threads wait, and what the environment says for it."""
BUSY = {"quiet": 0, "busy": 1}
"""Processes beside it for each thread."""
GOAL = 1.2
LONGEST = 1800
"""Seconds after which a process that takes time ends, whatever has become of this one."""
SPIN = """
import os, sys, time
parent, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
"""A program that takes all of a core, until it is ended, or its time or the process that started it is over."""
Seconds = dict[str, dict[str, list[float]]]
"""Of each case, on `one` thread and on `all`, of each call."""


@contextmanager
def taken(cores: int) -> Iterator[None]:
    """Inside: so many cores are taken by other processes, as far as the system lets them."""
    command = [sys.executable, "-c", SPIN, str(os.getpid()), str(LONGEST)]
    others = [subprocess.Popen(command) for _ in range(cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def waiting(policy: str | None) -> Iterator[None]:
    """Inside: the environment of new processes says that threads wait so."""
    with patch.dict(os.environ):
        os.environ.pop(VARIABLE, None)
        os.environ.pop("OMP_NUM_THREADS", None)
        if policy is not None:
            os.environ[VARIABLE] = policy
        yield


def ratio(seconds: Mapping[str, list[float]]) -> float:
    """Time on all threads over that on one, of all rounds together: what is rare and long counts."""
    return sum(seconds["all"]) / sum(seconds["one"])


def measure(args: argparse.Namespace) -> Outcome:
    """Every case on a quiet and on a busy machine; where threads spin the small ones, and none if `args.quick`."""
    others = psutil.cpu_percent(interval=2) / 100 * (psutil.cpu_count() or 1)
    common = ["-m", "benchmarks.thread_cases", f"--threads={args.threads}", f"--seconds={0.5 if args.quick else 10}"]
    found: dict[tuple[str, str], Seconds] = {}
    for policy, state in product(["asleep"] if args.quick else POLICIES, BUSY):
        small = ["--quick"] if args.quick or policy == "spinning" else []
        with waiting(POLICIES[policy]), taken(BUSY[state] * args.threads):
            found[policy, state] = json.loads(printed_by(f"{policy}, {state}", *common, *small))
        print(
            policy, state, {case: f"{ratio(seconds):.2f}" for case, seconds in found[policy, state].items()}, flush=True
        )
    ratios = {key: {name: ratio(seconds) for name, seconds in run.items()} for key, run in found.items()}
    figures = {
        f"{name}.{policy}.{state}.ratio".replace(",", "").replace(" ", "_"): value
        for (policy, state), run in ratios.items()
        for name, value in run.items()
    }
    notes = (
        "Sums of all rounds, one thread and all in turns. Asleep: OMP_WAIT_POLICY=PASSIVE, which the commands and run"
        " scripts set; spinning: not set.",
        *(goal(state, ratios["asleep", state]) for state in BUSY),
        f"Before it began, other programs took {others:.1f} of {psutil.cpu_count()} cores"
        + (": no figure here is one of a quiet machine." if others > 0.1 else "."),
    )
    return Outcome(
        figures | {"others.cores": others},
        (table(args.threads, found, ratios),),
        draw(ratios["asleep", "busy"], ratios["asleep", "quiet"]),
        notes,
    )


def goal(state: str, ratios: Mapping[str, float]) -> str:
    """Whether all threads cost no more than they may, where they wait asleep; in words."""
    over = [f"{name} ({value:.2f})" for name, value in ratios.items() if value > GOAL]
    return f"Goal, {state}, asleep: at most {GOAL} times one thread. Reached by all" + (
        f" but {', '.join(over)}." if over else "."
    )


def table(
    threads: int, found: Mapping[tuple[str, str], Seconds], ratios: Mapping[tuple[str, str], Mapping[str, float]]
) -> Table:
    """A row for each case: one thread's milliseconds on a machine left alone, and all ratios."""
    base = found["asleep", "quiet"]
    rows = tuple(
        (
            name,
            f"{1e3 * sum(base[name]['one']) / len(base[name]['one']):.1f} ms",
            *(f"{run[name]:.2f}" if name in run else "-" for run in ratios.values()),
        )
        for name in base
    )
    columns = ("case", "one thread", *(f"{policy}, {state}" for policy, state in ratios))
    return Table(f"Time on {threads} threads over that on one.", columns, rows)


def draw(busy: Mapping[str, float], quiet: Mapping[str, float]) -> Figure:
    """The ratios where threads wait asleep."""
    figure, ax = axes("All threads / one thread, threads waiting asleep", "", "ratio, lower is better", (10.0, 4.2))
    bars(ax, [name.replace(", ", "\n") for name in quiet], {"quiet": list(quiet.values()), "busy": list(busy.values())})
    ax.axhline(GOAL, color="#444444", linewidth=0.8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The common arguments; the threads are all there are."""
    made = arguments(__doc__ or "", "threads", devices=("cpu",))
    made.set_defaults(threads=psutil.cpu_count() or 1)
    return made


if __name__ == "__main__":
    sys.exit(main(__doc__, "threads", measure, parser()))
