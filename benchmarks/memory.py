"""Memory: the most that reconstruction holds, for each place and precision of the cache.

python -m benchmarks.memory --threads 1                # recorded
python -m benchmarks.memory --quick
python -m benchmarks.memory --networks resnet50 --caches disk/float32 --units 0    # every unit, takes long

Each setting runs in a process of its own: imports, images, calibration (with batches of 64), then a few
iterations of each of the first units, up to the widest activations of the network; later units keep less. Peak is
the largest resident set of the process (ru_maxrss), pages of mapped files that are in memory included; the
anonymous part of it, which the system cannot take back, is sampled every few milliseconds.
"""

import argparse
import json
import logging
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from matplotlib.figure import Figure

from benchmarks.common import QUICK, arguments, main
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Table
from benchmarks.timing import printed_by
from qdrop.config import CacheConfig, QuantConfig, ReconConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import make_plan
from qdrop.models import build_model
from qdrop.runtime.memory import peak_memory_mb
from qdrop.solver.calibrate import calibrate
from qdrop.solver.recon import reconstruct

NETWORKS = ("resnet18", "resnet50")
CACHES = ("cpu/float32", "cpu/bfloat16", "disk/float32", "disk/bfloat16")
GPU_CACHES = ("gpu/float32", "gpu/bfloat16", *CACHES)
UNITS = 3
"""Units reconstructed: the widest activations of both networks are those of the first stage."""
ITERATIONS = 3
EVERY = 0.005
"""Seconds between two looks at the anonymous memory."""
STATUS = Path("/proc/self/status")


def measure(args: Namespace) -> Outcome:
    """Peak memory of every network and setting, each in a process of its own."""
    images = args.images or (64 if args.quick else 1024)
    caches = args.caches or list((CACHES if args.device.type == "cpu" else GPU_CACHES)[:: 2 if args.quick else 1])
    figures: dict[str, float] = {}
    rows = []
    for network in args.networks:
        for cache in caches:
            found = in_a_process(network, cache, images, args)
            figures |= {f"{network}.{cache.replace('/', '_')}.{name}": value for name, value in found.items()}
            cells = (f"{found[name] / 1e3:.2f}" for name in found if name.endswith("_mb"))
            rows.append((network, *cache.split("/"), *cells, f"{found['seconds']:.0f}"))
    columns = ["network", "cache", "precision", "peak, GB", "anonymous, GB"]
    columns += ["GPU, GB"] if args.device.type == "cuda" else []
    units = f"the first {args.units} units" if args.units else "all units"
    table = Table(
        f"{images} images of 224x224, {units}, batch 32. Target: ResNet-50 within 6 GB with the disk cache.",
        (*columns, "s"),
        tuple(rows),
    )
    return Outcome(figures, (table,), draw(figures, args.networks, caches, images))


def in_a_process(network: str, cache: str, images: int, args: Namespace) -> dict[str, float]:
    """Figures of one setting.

    Raises:
        RuntimeError: If its process fails; with what it said.
    """
    command = ["-m", "benchmarks.memory", "--worker", "--networks", network, "--caches", cache]
    command += ["--images", str(images), "--units", str(args.units)]
    command += ["--threads", str(args.threads), "--device", args.device.type]
    printed = printed_by(f"{network} with {cache}", *command)
    print(f"{network} {cache}: {printed.strip()}", flush=True)
    return json.loads(printed)


def work(network: str, cache: str, count: int, units: int, device: torch.device) -> dict[str, float]:
    """One setting, in this process: peak memory in MB and seconds."""
    logging.getLogger("qdrop").setLevel(logging.ERROR)
    place, dtype = cache.split("/")
    config = QuantConfig(recon=ReconConfig(iters=ITERATIONS, cache=_cache(place, dtype)))
    assert config.recon is not None
    QUICK.mkdir(parents=True, exist_ok=True)
    with anonymous_memory() as anonymous, tempfile.TemporaryDirectory(dir=QUICK) as scratch:
        torch.manual_seed(0)
        images = torch.randn(count, 3, 224, 224)
        graph = capture(build_model(network), images[:2])
        plan = make_plan(graph, config, "block")
        model = quantize_graph(graph, plan).to(device)
        calibrate(model, {"x": images[:64]}, 64, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run = reconstruct(model, plan, {"x": images}, config.recon, 0, device, scratch=Path(scratch))
        seconds = sum(report.seconds for report in islice(run, units or None))
    found = {"peak_mb": peak_memory_mb(torch.device("cpu")), "anonymous_mb": max(anonymous) * 1024 / 1e6}
    if device.type == "cuda":
        found["gpu_mb"] = peak_memory_mb(device)
    return {name: round(value, 1) for name, value in {**found, "seconds": seconds}.items()}


def _cache(place: str, dtype: str) -> CacheConfig:
    """The setting by its two words.

    Raises:
        SystemExit: If there is no such place or precision; shows those there are.
    """
    for word, name in ((place, "device"), (dtype, "dtype")):
        known = get_args(get_type_hints(CacheConfig)[name])
        if word not in known:
            sys.exit(f"error: --caches {place}/{dtype}: {word} is none of {', '.join(known)}")
    return CacheConfig(device=place, dtype=dtype)  # type: ignore[arg-type]


@contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """Inside: samples of this process's anonymous memory in kB; empty but for a 0 where the system does not tell."""
    samples, done = [0], threading.Event()

    def watch() -> None:
        while STATUS.exists() and not done.wait(EVERY):
            line = next(text for text in STATUS.read_text().splitlines() if text.startswith("RssAnon"))
            samples[0] = max(samples[0], int(line.split()[1]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def draw(figures: dict[str, float], networks: list[str], caches: list[str], images: int) -> Figure:
    """Peak for each network and setting."""
    plot, ax = axes(f"Peak memory of reconstruction, {images} images of 224x224", "", "GB", (7.5, 4.2))
    series = {c: [figures[f"{n}.{c.replace('/', '_')}.peak_mb"] / 1e3 for n in networks] for c in caches}
    bars(ax, networks, series, "{:.1f}")
    ax.axhline(6, color="#333333", linewidth=1, linestyle="--", label="target for resnet50 on disk: 6 GB")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return plot


def parser() -> argparse.ArgumentParser:
    """The common arguments and this benchmark's own."""
    own = arguments(__doc__ or "", "memory")
    own.add_argument("--networks", nargs="+", default=list(NETWORKS), help="default: resnet18 resnet50")
    own.add_argument("--caches", nargs="+", metavar="PLACE/PRECISION", help=f"default: {' '.join(CACHES)}")
    own.add_argument("--images", type=int, metavar="N", help="default: 1024, with --quick 64")
    own.add_argument("--units", type=int, default=UNITS, metavar="N", help="units; 0: all (default: %(default)s)")
    own.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return own


if __name__ == "__main__":
    if "--worker" in sys.argv:
        given = parser().parse_args()
        torch.set_num_threads(given.threads)
        device = torch.device(given.device)
        print(json.dumps(work(given.networks[0], given.caches[0], given.images, given.units, device)))
        sys.exit()
    sys.exit(main(__doc__, "memory", measure, parser()))
