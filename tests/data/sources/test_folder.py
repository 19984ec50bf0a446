"""Image folders: their order, their splits, and every way in which one is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fedadapt.errors import ConfigError, DataError
from fedadapt.registry import create


def _write(path, value: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two classes, three train images and one test image of each, told apart by their red."""
    for number, name in enumerate(("cat", "dog")):
        for index in range(3):
            _write(tmp_path / "train" / name / f"{index}.png", 100 * number + index)
        _write(tmp_path / "test" / name / "0.png", 100 * number + 50)
    return tmp_path


def _load(path, **options: object):
    return create("source", "folder", {"path": path, "size": 4, **options})


def _reds(split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_classes_and_files_are_in_alphabetical_order(tree):
    """Labels number the sorted class folders, and images come in sorted order."""
    dataset = _load(tree)
    assert dataset.name == tree.name
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.images.shape == (6, 3, 4, 4)
    assert _reds(dataset.train) == [0, 1, 2, 100, 101, 102]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert _reds(dataset.test) == [50, 150]


def test_images_of_many_sizes_become_squares(tree):
    """Wide, tall and small images are all cropped and resized; grey ones become RGB."""
    _write(tree / "train" / "cat" / "wide.png", 9, (40, 3))
    _write(tree / "train" / "cat" / "tall.bmp", 9, (2, 30))
    Image.new("L", (4, 4), 8).save(tree / "train" / "cat" / "z.png")
    dataset = _load(tree)
    assert dataset.train.images.shape == (9, 3, 4, 4)
    assert dataset.train.images[5].unique().tolist() == [8]


def test_pixels_survive_at_their_own_size(tree):
    """A square image of the size asked for is read bit for bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tree / "train" / "cat" / "0.png")
    assert np.array_equal(_load(tree).train.images[0].permute(1, 2, 0).numpy(), pixels)


def test_hidden_and_other_files_are_passed_over(tree):
    """Notes, hidden files and hidden folders are no images."""
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "cat" / "._0.png").write_bytes(b"left by a file manager")
    (tree / "train" / ".cache").mkdir()
    assert len(_load(tree).train) == 6


@pytest.mark.parametrize("options", [{"test_split": ""}, {"test_split": "none"}])
def test_without_test_folder_train_images_are_split(tree, options):
    """A third of each class is held out."""
    dataset = _load(tree, test_fraction=0.34, **options)
    assert sorted(_reds(dataset.train) + _reds(dataset.test)) == [0, 1, 2, 100, 101, 102]
    assert dataset.test.labels.tolist() == [0, 1]


def test_splits_may_have_other_names(tree):
    """An ImageNet-like val folder can be the test set."""
    (tree / "test").rename(tree / "val")
    assert _reds(_load(tree, test_split="val").test) == [50, 150]


def test_domains_are_split_by_domain_and_class(tmp_path):
    """path/<domain>/<class>/ gives domain numbers in alphabetical order, and each cell its share of the test set."""
    for number, place in enumerate(("photo", "sketch")):
        for name in ("cat", "dog"):
            for index in range(5):
                _write(tmp_path / place / name / f"{index}.png", number)
    dataset = _load(tmp_path, domains=True)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    for split in (dataset.train, dataset.test):
        assert split.domains.tolist() == _reds(split)
    cells = zip(dataset.test.domains.tolist(), dataset.test.labels.tolist(), strict=True)
    assert sorted(cells) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(_load(tmp_path, domains=True).test.images, dataset.test.images)


def test_folders_may_be_people(tmp_path):
    """path/<id>/<class>/ gives ids, which the test set is not stratified by; they cannot be domains as well."""
    for number, person in enumerate(("ann", "bob")):
        for index in range(5):
            _write(tmp_path / person / "cat" / f"{index}.png", number)
    dataset = _load(tmp_path, ids=True)
    for split in (dataset.train, dataset.test):
        assert split.domains is None
        assert split.ids.tolist() == _reds(split)
    with pytest.raises(ConfigError, match=r"^source 'folder' has one level above the classes; set either"):
        _load(tmp_path, ids=True, domains=True)


def test_a_domain_may_lack_a_class(tmp_path):
    """Classes are those of all domains together."""
    for index in range(3):
        _write(tmp_path / "a" / "cat" / f"{index}.png", 0)
        _write(tmp_path / "b" / "dog" / f"{index}.png", 0)
    dataset = _load(tmp_path, domains=True)
    assert dataset.class_names == ("cat", "dog")
    assert sorted(set(zip(dataset.train.domains.tolist(), dataset.train.labels.tolist(), strict=True))) == [
        (0, 0),
        (1, 1),
    ]


def _refused(path, message: str, **options: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _load(path, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    """The message names the folder that is not there."""
    _refused(tmp_path, f"^there is no folder {re.escape(str(tmp_path / 'train'))}; ")


def test_a_folder_without_classes_is_refused(tmp_path):
    """An empty train folder has no classes."""
    (tmp_path / "train").mkdir()
    _refused(tmp_path, "train has no folders; it must have one for each class or domain$")


def test_a_class_without_images_is_refused(tree):
    """An empty class folder is more likely a mistake than a class."""
    (tree / "train" / "emu").mkdir()
    _refused(tree, r"emu has no images \(\.bmp, .*\); add some or remove the folder$")


def test_a_class_of_the_test_images_alone_is_refused(tree):
    """Nothing could be learnt about it."""
    _write(tree / "test" / "emu" / "0.png", 0)
    _refused(tree, "test has a class 'emu' that the train images lack; allowed: cat, dog$")


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"text", lambda content: content[: len(content) // 2]]
)
def test_a_corrupt_image_is_named(tree, damage):
    """The message names the file; a truncated one is not padded with grey."""
    path = tree / "train" / "dog" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(damage(path.read_bytes()))
    _refused(tree, f"^{re.escape(str(path))} cannot be read as an image .*; replace or remove it$")


def test_a_deep_image_is_named(tree):
    """16 bits a channel are refused with the file's name."""
    path = tree / "train" / "dog" / "1.png"
    Image.new("I;16", (4, 4)).save(path)
    _refused(tree, f"^{re.escape(str(path))} has a picture of mode 'I;16'; ")


def test_size_is_required(tree):
    """Files have no common size to fall back on."""
    with pytest.raises(ConfigError, match=r"^source 'folder': key 'size' is required$"):
        create("source", "folder", {"path": tree})
