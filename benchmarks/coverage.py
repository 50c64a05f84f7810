"""Which networks can be quantized: the smallest of each family of timm and torchvision, with random weights.

python -m benchmarks.coverage                          # all of them, an hour; writes docs/coverage.md
python -m benchmarks.coverage --quick                  # ten, two minutes
python -m benchmarks.coverage --only timm:vit_tiny_patch16_224 torchvision:swin_t
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.common import HERE
from benchmarks.coverage_case import Case, examine, prepare

NETWORKS = HERE / "coverage_networks.txt"
"""A name a line: of each family, which is a module of timm or a family name in it, the smallest of up to 100 million
weights."""
RESULTS = HERE / "results" / "coverage.jsonl"
PAGE = HERE.parent / "docs" / "coverage.md"
QUICK = (
    "torchvision:resnet18", "torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224", "timm:seresnet18",
    "timm:mobilenetv3_small_050", "timm:repvgg_a0", "timm:resnetv2_18", "timm:efficientvit_b0",
    "timm:xcit_nano_12_p16_224", "torchvision:shufflenet_v2_x0_5",
)  # fmt: skip
SECONDS = 900
"""Given to one network."""
NOISE, CLOSE = 1.5, 0.02
"""A cosine may be as far from 1 as so many times the reference's, and so much more."""
SAME = 0.02
"""Largest difference of ONNX Runtime, relative to the largest output: a few values that round the other way."""
TOUCHY = 1.5
"""Or as many times what PyTorch differs from itself by."""

REASONS = {
    "timm:xcit_nano_12_p16_224": "the class token is a hundredth of the image tokens that it is joined with, and the"
    " grid of the sum behind them, `cls_attn_blocks.0.add`, rounds it to 0; the reference leaves sums alone",
    "timm:ghostnetv3_050": "the sums in its modules, the worst of which alone gives 0.96",
    "timm:convit_tiny": "its attention maps are normalised once more, and so quantized twice: ten operands that alone"
    " give 0.996 each",
    "timm:lamhalobotnet50ts_256": "the sums of its last stage, which random weights let grow; its attention alone gives"
    " 1.000",
    "timm:halo2botnet50ts_256": "the sums of its last stage, which random weights let grow: the last alone gives 0.990;"
    " its attention alone gives 1.000",
}
"""Of networks that are less good than the reference: found by switching on one quantizer after the other."""


def run(names: Sequence[str]) -> Iterator[Case]:
    """Each network in a process that is replaced where one ends or hangs."""
    pool = None
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            pool = pool or ProcessPoolExecutor(1, get_context("spawn"), prepare)
            try:
                yield pool.submit(examine, name, Path(folder)).result(SECONDS)
            except (BrokenProcessPool, TimeoutError) as error:
                for process in list((pool._processes or {}).values()):
                    process.kill()
                pool = None
                yield Case(name, planned=f"{type(error).__name__}: no result in {SECONDS} s")
    if pool is not None:
        pool.shutdown()


def failures(case: Case) -> list[str]:
    """What is wrong with a case, in words."""
    if case.planned:
        return [f"not planned: {case.planned}"]
    found = []
    if not good(case):
        found.append(f"cosine {case.cosine:.3f}, of the naive reference {case.naive:.3f}")
    if case.loaded:
        found.append(f"not loaded: {case.loaded}")
    if case.onnx:
        found.append(f"no ONNX: {case.onnx}")
    elif not same(case):
        found.append(
            f"ONNX Runtime differs by {case.onnx_difference:.2g} of the largest output, PyTorch from itself by"
            f" {case.own:.2g}"
        )
    return found


def good(case: Case) -> bool:
    """Whether the outputs at W8A8 are as good as the reference's."""
    return 1 - case.cosine <= NOISE * (1 - case.naive) + CLOSE


def same(case: Case) -> bool:
    """Whether ONNX Runtime computes what PyTorch does, as nearly as can be told."""
    return case.onnx_difference <= max(SAME, TOUCHY * case.own)


def page(cases: Sequence[Case]) -> str:
    """The page of docs: totals, what failed and why, a row for each network."""
    count = len(cases)
    planned = [case for case in cases if not case.planned]
    totals = {
        "planned": len(planned),
        "at least 99.9% of multiply-accumulates on grids with `placement: integer`": sum(
            case.integer >= 0.999 for case in planned
        ),
        "W8A8 as good as the naive reference": sum(map(good, planned)),
        "saved and loaded with the same bits": sum(not case.loaded for case in planned),
        "ONNX Runtime computes the same": sum(not case.onnx and same(case) for case in planned),
    }
    lines = [
        "# Which networks can be quantized",
        "",
        f"`python -m benchmarks.coverage`, torch {torch.__version__}: {count} networks, the smallest of each family",
        "of timm and torchvision up to 100 million weights, with random weights, on images of 96 pixels or what they",
        "take.",
        "",
        "The naive reference knows nothing of graphs: hooks on the module's own convolutions and linear layers round",
        "what these read to 8 bits, and their weights are rounded. Cosines are those of the outputs with the outputs",
        f"in full precision. W8A8 counts as good where 1 less its cosine is at most {NOISE} times that of the",
        f"reference, plus {CLOSE}: sums and the operands of attention, which qdrop quantizes, the reference leaves as",
        "they are.",
        "",
        "ONNX: the largest difference of ONNX Runtime's outputs from PyTorch's, relative to the largest output.",
        "Own: of PyTorch's from themselves, with other kernels than oneDNN's or images changed by a millionth.",
        f"Outputs count as the same where they differ by at most {SAME}, or {TOUCHY} times PyTorch's own.",
        "",
        f"| of {count} networks | number | share |",
        "| --- | --- | --- |",
        *(f"| {what} | {number} | {number / max(1, count):.1%} |" for what, number in totals.items()),
        "",
        "## What fails, and why",
        "",
        *(_reason(case) for case in cases if failures(case)),
        "",
        "## All networks",
        "",
        "Share: multiply-accumulates with both operands quantized, with the published and the integer placement.",
        "",
        "| network | million weights | pixels | share | integer | W8A8 | naive | file | ONNX | own |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, cases),
    ]
    return "\n".join(lines) + "\n"


def _reason(case: Case) -> str:
    reason = f" Why: {REASONS[case.name]}." if case.name in REASONS else ""
    return f"- `{case.name}`: {'; '.join(failures(case))}.{reason}"


def _row(case: Case) -> str:
    if case.planned:
        return f"| {case.name} | {case.parameters / 1e6:.1f} | {case.size} | - | - | - | - | - | - | - |"
    file = "same bits" if not case.loaded else "no"
    onnx = "no" if case.onnx else f"{case.onnx_difference:.1g}"
    return (
        f"| {case.name} | {case.parameters / 1e6:.1f} | {case.size} | {case.share:.1%} | {case.integer:.1%} |"
        f" {case.cosine:.4f} | {case.naive:.4f} | {file} | {onnx} |"
        f" {case.own:.1g} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and write the record and the page; a line for each network on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten networks; the record is left alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks; the record is left alone")
    parser.add_argument("--resume", action="store_true", help="keep what is on record, run only what is not")
    args = parser.parse_args(argv)
    names = args.only or (QUICK if args.quick else NETWORKS.read_text(encoding="utf-8").split())
    recorded = not (args.only or args.quick)
    known = {}
    if recorded and args.resume and RESULTS.exists():
        rows = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
        known = {row["name"]: Case(**row) for row in rows}
    cases = [known[name] for name in names if name in known]
    for case in run([name for name in names if name not in known]):
        cases.append(case)
        print(_row(case), *failures(case), flush=True)
        if recorded:
            RESULTS.write_text("".join(json.dumps(asdict(c)) + "\n" for c in cases), encoding="utf-8")
    if recorded:
        cases.sort(key=lambda case: names.index(case.name))
        PAGE.write_text(page(cases), encoding="utf-8")
    else:
        print(page(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
