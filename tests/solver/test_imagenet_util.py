import hashlib
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10

from qdrop.config import Config, DataConfig, config_from_dict
from qdrop.solver.imagenet_util import (
    calibration_images,
    check_preparation,
    num_classes,
    validation_loader,
)
from qdrop.tasks.classification.accuracy import accuracy, check_network
from qdrop.tasks.classification.datasets import class_names, digits, training_source, validation_source
from qdrop.tasks.images import DataError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def save_image(path, seed, width=40, height=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)  # PNG: what is read is what was written
    return pixels


@pytest.fixture
def config(tmp_path):
    """Classes a to e with four training images each; val has only b and d, three and two images."""
    for number, name in enumerate("abcde"):
        for i in range(4):
            save_image(tmp_path / "train" / name / f"{i}.png", seed=10 * number + i)
    for i in range(3):
        save_image(tmp_path / "val" / "b" / f"{i}.png", seed=100 + i)
    for i in range(2):
        save_image(tmp_path / "val" / "d" / f"{i}.png", seed=200 + i)
    return DataConfig(path=str(tmp_path), batch_size=3, num_workers=0, input_size=16, test_resize=20)


@pytest.fixture
def cifar(tmp_path):
    for number, name in enumerate(["cat", "dog"]):
        for i in range(3):
            save_image(tmp_path / "train" / name / f"{i}.png", 10 * number + i, 32, 32)
            save_image(tmp_path / "val" / name / f"{i}.png", 100 + 10 * number + i, 32, 32)
    return DataConfig(type="cifar10", path=str(tmp_path), batch_size=4, num_workers=0)


def labels_of(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


def images_of(loader):
    return torch.cat([images for images, _ in loader])


# The class index


def test_labels_come_from_the_train_folder_though_val_holds_a_subset(config):
    assert class_names(config) == ["a", "b", "c", "d", "e"]
    assert num_classes(config) == 5
    assert labels_of(validation_loader(config)) == [1, 1, 1, 3, 3]


def test_labels_come_from_the_classes_file_in_its_order(config, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("d\n\nb\n  z  \n", encoding="utf-8-sig")  # as some editors for Windows write it
    config = replace(config, classes=str(file))
    assert class_names(config) == ["d", "b", "z"]
    assert labels_of(validation_loader(config)) == [1, 1, 1, 0, 0]


def test_classes_file_makes_the_train_folder_unnecessary_for_validation(tmp_path):
    save_image(tmp_path / "val" / "b" / "0.png", seed=0)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    config = DataConfig(path=str(tmp_path), num_workers=0)
    with pytest.raises(DataError, match=r"no folder .*train .*data\.classes=FILE") as error:
        validation_loader(config)
    assert "classes.txt, val/" in str(error.value)
    assert labels_of(validation_loader(replace(config, classes=str(tmp_path / "classes.txt")))) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no class names"),
        (b"a\nb\na\n", "more than once: a"),
        (b"caf\xe9\n", r"classes\.txt .* is no text in UTF-8"),
        (None, r"no file .*classes\.txt"),
    ],
)
def test_bad_classes_file(config, tmp_path, content, message):
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        class_names(replace(config, classes=str(file)))


def test_unknown_class_in_val_is_named(config, tmp_path):
    save_image(tmp_path / "val" / "zebra" / "0.png", seed=0)
    with pytest.raises(DataError, match=r"1 classes that are not among the 5 of .*train: zebra"):
        validation_loader(config)


class Pair(nn.Module):
    """A network with two outputs."""

    def forward(self, x):
        return x, x


def a_network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, outputs))


def test_a_network_that_fits_the_data():
    check_network(a_network(10), torch.zeros(2, 3, 8, 8), 10)


def test_too_few_classes_says_both_numbers_and_what_to_do():
    with pytest.raises(DataError, match=r"732 classes.* 1000 outputs.*data\.classes=FILE"):
        check_network(a_network(1000), torch.zeros(2, 3, 8, 8), 732)


def test_a_network_for_other_images():
    with pytest.raises(DataError, match=r"cannot run on the images of the data, 1x8x8: .*mat1 and mat2 shapes"):
        check_network(a_network(10), torch.zeros(2, 1, 8, 8), 10)


@pytest.mark.parametrize(("network", "told"), [(nn.Identity(), r"of shape \[2, 3, 8, 8\]"), (Pair(), "a tuple")])
def test_a_network_without_logits(network, told):
    with pytest.raises(DataError, match=told):
        check_network(network, torch.zeros(2, 3, 8, 8), 10)


# Paths and layouts


@pytest.mark.parametrize("kind", ["imagenet", "cifar10"])
@pytest.mark.parametrize("use", [validation_loader, num_classes, lambda config: calibration_images(config, 1, 0)])
def test_path_not_set(kind, use):
    with pytest.raises(DataError, match=r"data\.path=FOLDER[\s\S]*train/<class>/\*\.jpg"):
        use(DataConfig(type=kind))


def test_missing_path_shows_what_is_there_instead(tmp_path):
    (tmp_path / "ILSVRC").mkdir()
    with pytest.raises(DataError) as error:
        validation_loader(DataConfig(path=str(tmp_path / "imagenet" / "2012")))
    assert f"no folder {tmp_path}/imagenet/2012" in str(error.value)
    assert f"Found in {tmp_path}: ILSVRC/." in str(error.value)
    assert f"expects {tmp_path}/imagenet/2012/train/<class>/*.jpg" in str(error.value)


def test_missing_val_folder(config, tmp_path):
    (tmp_path / "val").rename(tmp_path / "validation")
    with pytest.raises(DataError, match=r"no folder .*/val .*Found in .*: train/, validation/\."):
        validation_loader(config)


def test_val_folder_without_class_folders(config, tmp_path):
    for name in "bd":
        for file in (tmp_path / "val" / name).iterdir():
            file.rename(tmp_path / "val" / f"{name}{file.name}")
        (tmp_path / "val" / name).rmdir()
    with pytest.raises(DataError, match=r"no images in class sub-folders\. Found in .*/val: b0\.png, b1\.png"):
        validation_loader(config)


def test_empty_train_folder(tmp_path):
    (tmp_path / "train").mkdir()
    config = DataConfig(path=str(tmp_path))
    with pytest.raises(DataError, match=r"hold no images\. Found in .*/train: nothing"):
        calibration_images(config, 1, seed=0)
    with pytest.raises(DataError, match="no class sub-folders"):
        num_classes(config)


def test_cifar_error_shows_both_layouts(tmp_path):
    with pytest.raises(DataError, match=r"train/<class>/\*\.jpg.*cifar-10-batches-py/") as error:
        validation_loader(DataConfig(type="cifar10", path=str(tmp_path)))
    assert f"Found in {tmp_path}: nothing" in str(error.value)


def test_other_files_and_hidden_ones_are_no_images(config, tmp_path):
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "a" / "._0.png").write_text("left by a Mac")
    save_image(tmp_path / "train" / ".cache" / "0.png", seed=0)
    assert len(training_source(config).labels) == 20
    assert num_classes(config) == 5


# Calibration images


def test_pipes_and_names_that_are_no_utf8(config, tmp_path, caplog):
    os.mkfifo(tmp_path / "val" / "b" / "pipe.png")
    os.mkfifo(tmp_path / "train" / "b" / "pipe.png")
    folder = os.fsencode(tmp_path / "val" / "b")
    (tmp_path / "val" / "b" / "0.png").rename(Path(os.fsdecode(folder + b"/caf\xe9.png")))
    Path(os.fsdecode(folder + b"/\xff.png")).write_bytes(b"no image")
    assert labels_of(validation_loader(config)) == [1, 1, 1, 3, 3]
    assert "b/\\udcff.png" in caplog.text
    assert len(calibration_images(config, 20, seed=0)) == 20


def test_calibration_images_are_crops_of_distinct_training_images(config):
    images = calibration_images(replace(config, augment=False), 20, seed=3)
    assert images.shape == (20, 3, 16, 16)
    assert images.dtype == torch.float32
    assert len(images.flatten(1).unique(dim=0)) == 20


def test_calibration_without_augmentation_is_the_validation_transform(config):
    config = replace(config, augment=False)
    in_validation = images_of(validation_loader(config))
    images = calibration_images(replace(config, calib_from="val"), 5, seed=0)
    assert sorted(images.flatten(1).tolist()) == sorted(in_validation.flatten(1).tolist())


def test_calibration_depends_on_the_seed_only(config):
    images = calibration_images(config, 8, seed=3)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(images, calibration_images(config, 8, seed=3))
    assert torch.equal(images, calibration_images(replace(config, num_workers=2), 8, seed=3))
    assert torch.equal(images, calibration_images(replace(config, batch_size=5), 8, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    other = calibration_images(config, 8, seed=4)
    assert not torch.equal(images, other)


def test_augmentation_changes_with_the_seed_and_is_not_the_central_crop(config):
    def one(seed, **changes):
        return calibration_images(replace(config, calib_from="val/b", **changes), 3, seed)

    plain = {tuple(image) for image in one(0, augment=False).flatten(1).tolist()}
    crops = [tuple(image) for seed in range(3) for image in one(seed).flatten(1).tolist()]
    assert len(plain) == 3
    assert len(set(crops)) == 9
    assert not plain & set(crops)


def test_calibration_from_a_folder_elsewhere_even_without_class_folders(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    pixels = save_image(folder / "one.png", 5, 16, 16)
    config = replace(config, calib_from=str(folder), augment=False, test_resize=16)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN) / STD
    torch.testing.assert_close(calibration_images(config, 1, seed=0)[0], expected)


def test_calibration_from_a_missing_folder(config):
    with pytest.raises(DataError, match=r"no folder .*/trian .*data\.calib_from.*Found in .*: train/, val/\."):
        calibration_images(replace(config, calib_from="trian"), 1, seed=0)


@pytest.mark.parametrize("count", [0, 21])
def test_calibration_count_out_of_reach(config, count):
    with pytest.raises(DataError, match=f"needs {count} images, found 20"):
        calibration_images(config, count, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_calibration_images_are_replaced_with_one_warning(config, tmp_path, caplog, workers):
    config = replace(config, num_workers=workers, augment=False)
    everything = calibration_images(config, 20, seed=0)
    for name in "abc":
        (tmp_path / "train" / name / "1.png").write_bytes(b"no picture")
    truncated = tmp_path / "train" / "d" / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        images = calibration_images(config, 16, seed=0)
    assert len(images.flatten(1).unique(dim=0)) == 16
    assert {tuple(i) for i in images.flatten(1).tolist()} < {tuple(i) for i in everything.flatten(1).tolist()}
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("4 of 20 images cannot be read, replaced")
    assert all(f"{name}/1.png" in message for name in "abcd")


def test_too_few_readable_calibration_images(config, tmp_path):
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="needs 20 images, found 19 that can be read among 20"):
        calibration_images(config, 20, seed=0)


def test_no_readable_calibration_image(config, tmp_path):
    for file in (tmp_path / "train" / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="needs 2 images, found 0 that can be read among 4"):
        calibration_images(replace(config, calib_from="train/a"), 2, seed=0)


# Validation


def test_validation_resizes_crops_and_normalises(tmp_path):
    save_image(tmp_path / "train" / "a" / "0.png", seed=0)
    pixels = save_image(tmp_path / "val" / "a" / "0.png", seed=1, width=30, height=20)
    config = DataConfig(path=str(tmp_path), num_workers=0, input_size=16, test_resize=20)
    (images, labels), *rest = validation_loader(config)
    expected = (torch.from_numpy(pixels[2:18, 7:23]).permute(2, 0, 1) / 255 - MEAN) / STD
    assert not rest
    torch.testing.assert_close(images, expected[None])
    assert labels.tolist() == [0]
    assert labels.dtype == torch.int64


def test_grey_and_transparent_images_become_rgb(config, tmp_path):
    Image.new("L", (40, 40), 128).save(tmp_path / "val" / "b" / "0.png")
    Image.new("RGBA", (40, 40), (128, 128, 128, 0)).save(tmp_path / "val" / "b" / "1.png")
    images = images_of(validation_loader(config))
    assert images.shape == (5, 3, 16, 16)
    expected = ((128 / 255 - MEAN) / STD).expand(3, 16, 16)
    torch.testing.assert_close(images[0], expected)
    torch.testing.assert_close(images[1], expected)


def test_val_limit_is_evenly_spread_and_always_the_same(config):
    everything = images_of(validation_loader(config))
    loader = validation_loader(replace(config, val_limit=2))
    assert labels_of(loader) == [1, 1]  # images 0 and 2 of 5
    assert torch.equal(images_of(loader), everything[[0, 2]])
    assert labels_of(validation_loader(replace(config, val_limit=3))) == [1, 1, 3]  # 0, 1, 3
    assert labels_of(validation_loader(replace(config, val_limit=99))) == [1, 1, 1, 3, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_images_are_left_out_with_one_warning(config, tmp_path, caplog, workers):
    for i in range(3):  # the whole first batch
        (tmp_path / "val" / "b" / f"{i}.png").write_bytes(b"no picture")
    state = torch.get_rng_state()
    loader = validation_loader(replace(config, num_workers=workers))
    assert labels_of(loader) == [3, 3]
    (record,) = caplog.records
    assert record.getMessage() == ("3 of 5 images cannot be read, left out of the accuracy: b/0.png, b/1.png, b/2.png")
    assert torch.equal(state, torch.get_rng_state())


# CIFAR-10


def test_cifar_folder_is_neither_resized_nor_cropped(cifar, tmp_path):
    images = images_of(validation_loader(cifar))
    pixels = np.array(Image.open(tmp_path / "val" / "cat" / "0.png"))
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN) / STD
    assert images.shape == (6, 3, 32, 32)
    torch.testing.assert_close(images[0], expected)
    assert labels_of(validation_loader(cifar)) == [0, 0, 0, 1, 1, 1]
    assert num_classes(cifar) == 2


def test_cifar_augmentation_shifts_and_flips(cifar):
    plain = calibration_images(replace(cifar, augment=False), 6, seed=0)
    augmented = calibration_images(cifar, 6, seed=0)
    assert augmented.shape == plain.shape == (6, 3, 32, 32)
    for image, original in zip(augmented, plain, strict=True):
        canvas = nn.functional.pad(original * STD + MEAN, (4, 4, 4, 4))  # black around
        shifted = [canvas[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        candidates = torch.stack(shifted + [view.flip(2) for view in shifted])  # [162, 3, 32, 32]
        assert (candidates - (image * STD + MEAN)).flatten(1).abs().max(1).values.min() < 1e-5
    assert not torch.equal(plain, augmented)


def test_cifar_image_of_another_size_is_named(cifar, tmp_path):
    save_image(tmp_path / "val" / "cat" / "9.png", 0, width=40, height=32)
    with pytest.raises(DataError, match=r"cat/9\.png measures 40x32.*data\.type=imagenet resizes"):
        list(validation_loader(cifar))


def write_cifar_batches(root: Path, monkeypatch):
    """A miniature of what torchvision downloads: 2 training images in one batch, 1 test image."""
    folder = root / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    data = np.random.RandomState(0).randint(0, 256, (3, 3072), dtype=np.uint8)
    train = write("data_batch_1", {"data": data[:2], "labels": [7, 2]})
    test = write("test_batch", {"data": data[2:], "labels": [9]})
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    filename, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", [train])
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    return data.reshape(3, 3, 32, 32), names


def test_cifar_as_torchvision_stores_it(tmp_path, monkeypatch):
    data, names = write_cifar_batches(tmp_path, monkeypatch)
    config = DataConfig(type="cifar10", path=str(tmp_path), num_workers=0, augment=False)
    expected = (torch.from_numpy(data) / 255 - MEAN) / STD
    assert class_names(config) == names
    (images, labels), *_ = validation_loader(config)
    torch.testing.assert_close(images, expected[2:])
    assert labels.tolist() == [9]
    images = calibration_images(config, 2, seed=0)
    torch.testing.assert_close(images.flatten(1).sum(1).sort()[0], expected[:2].flatten(1).sum(1).sort()[0])
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"half a download")
    with pytest.raises(DataError, match="incomplete or damaged"):
        validation_loader(config)


# Digits


def test_digits_split_is_disjoint_stratified_and_complete():
    (train, train_labels), (val, val_labels) = digits(train=True), digits(train=False)
    assert train.shape == (1201, 1, 8, 8)
    assert val.shape == (596, 1, 8, 8)
    assert train.dtype == val.dtype == torch.float32
    assert train.min() == val.min() == 0
    assert train.max() == val.max() == 1
    rows = {tuple(row) for row in train.flatten(1).tolist()}
    assert not any(tuple(row) in rows for row in val.flatten(1).tolist())
    for digit in range(10):
        share = val_labels.count(digit) / (val_labels.count(digit) + train_labels.count(digit))
        assert 0.32 < share < 0.34


def test_digits_need_no_files():
    config = DataConfig(type="digits", num_workers=0, augment=False)
    images = images_of(validation_loader(config))
    torch.testing.assert_close(images, (digits(train=False)[0] - 0.3) / 0.4)
    assert labels_of(validation_loader(config)) == digits(train=False)[1]
    assert num_classes(config) == 10
    training = {tuple(row) for row in ((digits(train=True)[0] - 0.3) / 0.4).flatten(1).tolist()}
    chosen = calibration_images(config, 1024, seed=0)
    assert chosen.shape == (1024, 1, 8, 8)
    assert {tuple(row) for row in chosen.flatten(1).tolist()} <= training
    shifted = calibration_images(replace(config, augment=True), 1024, seed=0)
    still = (shifted == chosen).flatten(1).all(1).float().mean()
    assert 0.05 < still < 0.2  # one of nine shifts is none
    with pytest.raises(DataError, match="needs 2000 images, found 1201"):
        calibration_images(config, 2000, seed=0)


# Accuracy


class Lookup(nn.Module):
    """Logits are the image's own values. Also shows in which mode it was called."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(1).eval()
        self.modes = set()

    def forward(self, x):
        self.modes.add((self.training, self.frozen.training, torch.is_grad_enabled()))
        return x.flatten(1)


def batches(*predictions_and_labels):
    return [
        (torch.eye(4)[predictions].view(-1, 1, 2, 2), torch.tensor(labels))
        for predictions, labels in predictions_and_labels
    ]


def test_accuracy_is_top1_in_percent_over_batches_of_any_size():
    model = Lookup()
    assert accuracy(model, batches(([0, 1, 2], [0, 1, 3]), ([3], [0])), "cpu") == 50.0
    assert model.modes == {(False, False, False)}
    assert model.training
    assert not model.frozen.training  # each module gets its own flag back
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_accuracy_stops_at_a_non_finite_output(bad):
    model, loader = Lookup(), batches(([0], [0]), ([1], [1]))
    loader[1][0][0, 0, 0, 0] = bad
    with pytest.raises(FloatingPointError, match="batch 2 of 2"):
        accuracy(model, loader, torch.device("cpu"))
    assert model.training


def test_accuracy_of_nothing_is_an_error(config, tmp_path):
    for file in (tmp_path / "val").glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no validation image could be read"):
        accuracy(Lookup(), validation_loader(config), "cpu")


# The real folders


def real(name):
    root = os.environ.get("QDROP_DATA")
    if not root or not (Path(root) / name / "val").is_dir():
        pytest.skip(f"needs {name} under QDROP_DATA")
    return str(Path(root) / name)


@pytest.mark.data
def test_real_imagenet():
    config = DataConfig(path=real("imagenet"), num_workers=2, test_resize=227)
    names = class_names(config)
    assert num_classes(config) == 1000
    source = validation_source(config)
    assert len(source.labels) == 1200
    assert len(set(source.labels)) == 732
    for index in (0, 600, 1199):
        assert names[source.labels[index]] == source.name(index).split("/")[0]
    loader = validation_loader(replace(config, val_limit=60))
    images, labels = next(iter(loader))
    assert images.shape == (60, 3, 224, 224)
    assert len(labels.unique()) > 50
    assert labels.max() > 900
    assert 0.5 < images.std() < 2
    assert calibration_images(config, 8, seed=0).shape == (8, 3, 224, 224)


@pytest.mark.data
def test_real_cifar():
    config = DataConfig(type="cifar10", path=real("cifar10"), num_workers=0, val_limit=100)
    assert num_classes(config) == 10
    assert class_names(config)[3] == "cat"
    assert len(validation_source(config).labels) == 10_000
    labels = torch.tensor(labels_of(validation_loader(config)))
    assert labels.bincount().tolist() == [10] * 10
    assert calibration_images(config, 32, seed=0).shape == (32, 3, 32, 32)


def test_images_prepared_otherwise_than_in_training_are_mentioned(caplog):
    inception = {"type": "timm:inception_v3"}
    check_preparation(Config())
    check_preparation(config_from_dict({"model": inception}))
    check_preparation(config_from_dict({"model": inception, "data": {"type": "cifar10"}}))
    assert not caplog.text
    check_preparation(config_from_dict({"model": inception, "data": {"mean": [0.4, 0.4, 0.4], "input_size": 224}}))
    assert "trained with data.mean=[0.5, 0.5, 0.5], here it is [0.4, 0.4, 0.4]" in caplog.text
    assert "data.input_size=299, here it is 224" in caplog.text and "std" not in caplog.text


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_validation_images_are_resized_as_they_are_told_to(mode, crop_mode, config, tmp_path):
    config = replace(config, interpolation=mode, crop_mode=crop_mode)
    size = (20, 20) if crop_mode == "squash" else (25, 20)  # of 40x32 pixels
    expected = []
    for name in ("b/0", "b/1", "b/2", "d/0", "d/1"):
        image = Image.open(tmp_path / "val" / f"{name}.png").resize(size, Image.Resampling[mode.upper()])
        left, top = round((size[0] - 16) / 2), 2
        pixels = np.asarray(image.crop((left, top, left + 16, top + 16)), np.float32) / 255
        expected.append((torch.from_numpy(pixels).permute(2, 0, 1) - MEAN) / STD)
    assert torch.allclose(images_of(validation_loader(config)), torch.stack(expected), atol=1e-6)


def test_calibration_images_are_interpolated_as_they_are_told_to(config):
    usual = calibration_images(config, 8, seed=0)
    assert torch.equal(calibration_images(replace(config, interpolation="bilinear"), 8, seed=0), usual)
    assert not torch.equal(calibration_images(replace(config, interpolation="nearest"), 8, seed=0), usual)
