"""Hostile files: weights, folders of images, and what lies in the folder of a run."""

import io
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import qdrop
from hostile.case import Case, written
from qdrop import cli
from qdrop.config import DataConfig
from qdrop.solver.imagenet_util import calibration_images, validation_loader

NETWORK = "digits_resnet"
DIGITS = "9" * 5000


class Refused(Exception):
    """A command ended with an error; its text is the line that the user sees."""


class Hack:
    """Executes a command where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/hacked",)


def weights(folder: Path) -> Iterator[Case]:
    """Checkpoints that are damaged, forged, or of something else."""
    good = qdrop.build_model(NETWORK).state_dict()
    name = next(key for key, value in good.items() if value.dim() == 4)
    bias = next(key for key, value in good.items() if key.endswith("bias"))

    def case(
        title: str, key: str, value: object, names: str = "", suffix: str = "pth", must_refuse: bool = True
    ) -> Case:
        file = folder / f"{len(list(folder.iterdir()))}.{suffix}"
        state = good | {key: value}
        torch.save(state, file) if suffix == "pth" else save_file(state, file)
        return Case(f"{title} ({suffix})", _build(file), names or str(file), must_refuse=must_refuse)

    weight = good[name]
    for title, value in {
        "a sparse tensor": weight.to_sparse(),
        "a sparse tensor (csr)": weight.flatten(1).to_sparse_csr(),
        "a nested tensor": torch.nested.nested_tensor([weight[0], weight[1]]),
        "a quantized tensor": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "a tensor without values": weight.to("meta"),
        "a text": "x",
        "a list": [1.0, 2.0],
        "an object": nn.ReLU(),
        "a stride of 0": torch.zeros(1).expand(10**6, 10**6),
    }.items():
        yield case(title, name, value)
    for suffix in ("pth", "safetensors"):
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, torch.complex64):
            yield case(f"weights of {dtype}", name, weight.to(dtype), name, suffix)
        for value in (torch.nan, torch.inf, -torch.inf, 1e300):
            for key in (name, bias):
                changed = good[key].double()
                changed.view(-1)[3] = value
                yield case(f"{key} with {value}", key, changed, key, suffix)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            yield case(f"weights of {dtype}", name, weight.to(dtype), suffix=suffix, must_refuse=False)
        yield case("a wrong shape", name, weight[:1].clone(), name, suffix)
        yield case("a scalar", name, torch.tensor(1.0), name, suffix)
        yield case("an empty tensor", name, torch.empty(0), name, suffix)
        yield case("one too many", "more.weight", torch.ones(3), "more.weight", suffix)
    for title, content in _foreign(folder, good).items():
        for suffix in ("pth", "safetensors"):
            file = written(folder / f"{title.replace(' ', '_')}.{suffix}", content)
            yield Case(f"{title} ({suffix})", _build(file), str(file))
    os.mkfifo(folder / "fifo.pth")
    (folder / "folder.pth").mkdir()
    (folder / "zero.pth").symlink_to("/dev/zero")
    (folder / "loop.pth").symlink_to(folder / "loop.pth")
    for title in ("fifo", "folder", "zero", "loop", "none"):
        yield Case(f"a path of a {title}", _build(folder / f"{title}.pth"), title)


def _foreign(folder: Path, good: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Contents of files that are no checkpoint."""

    def saved(value: object, **how: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **how)
        return buffer.getvalue()

    bomb, scripted, tar = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, zipfile.ZipFile(io.BytesIO(saved(good))) as whole:
        for entry in whole.infolist():
            archive.writestr(entry.filename, whole.read(entry))
        with archive.open("archive/data/bomb", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(10 << 20))
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), scripted)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    plain = saved(good)
    return {
        "a program in pickle": saved({"state_dict": Hack(folder)}),
        "a program in old pickle": saved({"state_dict": Hack(folder)}, _use_new_zipfile_serialization=False),
        "a whole module": saved(nn.Linear(2, 2)),
        "an archive that unpacks to gigabytes": bomb.getvalue(),
        "TorchScript": scripted.getvalue(),
        "an old tar": tar.getvalue(),
        "nothing in it": b"",
        "text": b"hello",
        "half of it": plain[: len(plain) // 2],
        "its end": plain[len(plain) // 2 :],
        "zeros": bytes(10000),
        "an empty dict": saved({}),
        "a list": saved([good]),
        "numbers as keys": saved(dict.fromkeys(range(3), torch.ones(1))),
        "a header of 2^63 bytes": (2**63 - 1).to_bytes(8, "little") + b"{}",
        "a header that is no JSON": (100).to_bytes(8, "little") + b"x" * 100,
        "a header with 5,000 digits": _header(f'{{"a":{{"dtype":"F32","shape":[{DIGITS}],"data_offsets":[0,4]}}}}'),
        "a type that is not there": _header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'),
        "a tensor of 2^62 values": _header(f'{{"a":{{"dtype":"F32","shape":[{2**62}],"data_offsets":[0,4]}}}}'),
        "offsets outside": _header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[96,100]}}'),
        "offsets backwards": _header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
    }


def _header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + bytes(4)


def _build(file: Path) -> Callable[[], object]:
    return lambda: qdrop.build_model(NETWORK, {}, str(file))


def image_folders(folder: Path) -> Iterator[Case]:
    """Folders that hold images and something else: the images are found, and nothing waits or breaks."""

    def add_fifo(place: Path) -> None:
        os.mkfifo(place / "fifo.png")

    def add_odd_names(place: Path) -> None:
        for name in (
            b"caf\xe9.png",
            b"new\nline.png",
            b"\xff\xfe.jpg",
            b"-rf.png",
            b"sp ace.png",
            b"x" * 250 + b".png",
        ):
            written(Path(os.fsdecode(os.fsencode(place) + b"/" + name)), _png(8))

    def add_odd_damaged(place: Path) -> None:
        for name in (b"caf\xe9.png", b"\xff.jpg"):
            written(Path(os.fsdecode(os.fsencode(place) + b"/" + name)), b"no image")

    def add_odd_class(place: Path) -> None:
        for split in ("train", "val"):
            written(Path(os.fsdecode(os.fsencode(place.parents[1] / split) + b"/caf\xe9/1.png")), _png(8))

    def add_links(place: Path) -> None:
        (place / "loop.png").symlink_to(place / "loop.png")
        (place / "nowhere.png").symlink_to("/nowhere")
        (place / "zero.png").symlink_to("/dev/zero")
        (place / "up").symlink_to(place.parent)
        (place / "folder.png").mkdir()

    def add_damaged(place: Path) -> None:
        written(place / "empty.png", b"")
        written(place / "text.jpg", b"hello")
        written(place / "half.png", _png(64)[:100])
        written(place / "bomb.png", _huge_png())

    changes = {
        "a pipe": (add_fifo, 0),
        "names that are no UTF-8": (add_odd_names, 6),
        "damaged images whose names are no UTF-8": (add_odd_damaged, 0),
        "a class whose name is no UTF-8": (add_odd_class, 1),
        "links that lead nowhere": (add_links, 0),
        "damaged images": (add_damaged, 0),
    }
    for number, (title, (change, more)) in enumerate(changes.items()):
        root = folder / str(number)
        for split in ("train", "val"):
            for name in ("a", "b"):
                for i in range(2):
                    written(root / split / name / f"{i}.png", _png(8))
            change(root / split / "a") if change is not add_odd_class else None
        if change is add_odd_class:
            change(root / "train" / "a")
        yield Case(f"{title}, validation", lambda root=root, n=4 + more: _read(root, n), must_refuse=False)
        yield Case(f"{title}, calibration", lambda root=root, n=4 + more: _calibrate(root, n), must_refuse=False)


def _data(root: Path) -> DataConfig:
    return DataConfig(path=str(root), num_workers=0, input_size=8, test_resize=8)


def _read(root: Path, count: int) -> None:
    with _to_file(root):
        assert sum(len(labels) for _, labels in validation_loader(_data(root))) == count


def _calibrate(root: Path, count: int) -> None:
    with _to_file(root):
        assert len(calibration_images(_data(root), count, seed=0)) == count


class _to_file:
    """The package's log in a file, as in a run; what cannot be written raises."""

    def __init__(self, root: Path):
        self.handler = logging.FileHandler(root / "run.log", encoding="utf-8")

    def __enter__(self):
        def fails(record: logging.LogRecord) -> None:
            raise

        self.handler.handleError = fails
        logging.getLogger("qdrop").addHandler(self.handler)

    def __exit__(self, *_: object):
        logging.getLogger("qdrop").removeHandler(self.handler)
        self.handler.close()


def _png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def _huge_png() -> bytes:
    """A file of a kilobyte that says it measures 60,000 x 60,000."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def run_folders(folder: Path) -> Iterator[Case]:
    """What an interrupted run, or somebody else, left in the run folder."""
    config = written(folder / "c.yaml", CONFIG)
    identities = {
        "a list": "[]",
        "a number": "3",
        "null": "null",
        "a text": '"x"',
        "an empty object": "{}",
        "checksums: null": '{"checksums": null}',
        "checksums: []": '{"checksums": []}',
        "checksums of numbers": '{"checksums": {"plan": 3}}',
        "nested too deeply": "[" * 100_000,
        "5,000 digits": DIGITS,
        "half of it": '{"checksums": {',
        "nothing": "",
        "no UTF-8": b"\xff\xfe{}",
        "NUL bytes": bytes(100),
    }
    for number, (title, content) in enumerate(identities.items()):
        out = folder / f"resume{number}"
        written(out / "resume" / "run.json", content)
        written(out / "resume" / "0000.safetensors", b"x")
        yield Case(f"run.json: {title}", _command(config, out), "resume", errors=(Refused,))
    for name, contents in {
        "result.json": ("[]", "{}", "null", DIGITS, "[" * 100_000, b"\xff", '{"top1": "x"}'),
        "env.json": ("[]", '{"weights": null}', '{"weights": []}', '{"weights": {"sha256": 3}}', "[" * 100_000),
        "config.resolved.yaml": ("hello", "a: &a [*a]", "!!python/name:os.system", b"\xff", ""),
        "quantized.safetensors": ("", "hello"),
    }.items():
        for number, content in enumerate(contents):
            out = folder / f"{name}{number}"
            _finished(folder, config, out)
            written(out / name, content)
            yield Case(f"{name}: {content[:20]!r}", _command(config, out), must_refuse=False, errors=(Refused,))
            yield Case(f"report of {name}: {content[:20]!r}", _report(out), must_refuse=False, errors=(Refused,))


CONFIG = """\
quant:
  calibrate: 16
  recon: null
  w_qconfig: {observer: MinMaxObserver}
  a_qconfig: {observer: MinMaxObserver}
model: {type: digits_resnet, path: embedded}
data: {type: digits, input_size: 8, test_resize: 8, val_limit: 20, num_workers: 0}
process: {threads: 1, device: cpu}
"""


def _finished(folder: Path, config: Path, out: Path) -> None:
    """A copy of a finished run."""
    import shutil

    whole = folder / "whole"
    if not whole.exists():
        _command(config, whole)()
    shutil.copytree(whole, out)


def _command(config: Path, out: Path) -> Callable[[], None]:
    return lambda: _run("quantize", "--config", str(config), f"process.out={out}")


def _report(out: Path) -> Callable[[], None]:
    return lambda: _run("report", str(out))


def _run(*arguments: str) -> None:
    """A command; what it says where it ends with an error is raised."""
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("qdrop").addHandler(handler)
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            status = cli.main(list(arguments))
    except SystemExit as error:
        raise Refused(f"arguments: {error}") from error
    finally:
        logging.getLogger("qdrop").removeHandler(handler)
    if status:
        raise Refused("\n".join(lines) or stderr.getvalue())
