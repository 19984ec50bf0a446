"""torchvision's own readers, on small files in the sets' own formats."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fedadapt.errors import DataError, UnknownName
from fedadapt.registry import create


def _write_idx(path, array: np.ndarray) -> None:
    """An array of bytes in the format of MNIST: magic, sides as big-endian words, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def _mnist(root, name: str = "MNIST", prefix: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, file, count in (("train", "train", 12), ("test", "t10k" if not prefix else "test", 5)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = (np.arange(count) % 10).astype(np.uint8)
        _write_idx(root / name / "raw" / f"{prefix}{file}-images-idx3-ubyte", arrays[f"x_{part}"])
        _write_idx(root / name / "raw" / f"{prefix}{file}-labels-idx1-ubyte", arrays[f"y_{part}"])
    return arrays


def _load(name: str, root, **options: object):
    return create("source", "torchvision", {"dataset": name, "root": root, **options})


def test_mnist_files_are_read(tmp_path):
    """Images, labels and class names of a set with train=True and False; grey becomes RGB."""
    arrays = _mnist(tmp_path)
    dataset = _load("MNIST", tmp_path)
    assert dataset.name == "MNIST"
    assert dataset.class_names[1] == "1 - one"
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        expected = torch.from_numpy(arrays[f"x_{part}"])[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(split.images, expected)
        assert split.labels.tolist() == arrays[f"y_{part}"].tolist()


def test_size_resizes(tmp_path):
    """Images are fitted to the size asked for."""
    _mnist(tmp_path)
    assert _load("MNIST", tmp_path, size=14).test.images.shape == (5, 3, 14, 14)


def test_further_options_reach_the_class(tmp_path):
    """EMNIST takes train by its base class, and needs split as an option of its own."""
    arrays = _mnist(tmp_path, "EMNIST", "emnist-digits-")
    dataset = _load("EMNIST", tmp_path, options={"split": "digits"})
    assert dataset.train.labels.tolist() == arrays["y_train"].tolist()


def test_sets_with_a_split_argument_are_read(tmp_path, monkeypatch):
    """A set with split="train" and "test", SVHN, is read from its Matlab files; its classes have no names."""
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import calculate_md5

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    published = {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": pixels, "y": np.array([[1], [2], [3], [1], [2], [10]])})
        published[part] = ["", path.name, calculate_md5(path)]
    monkeypatch.setattr(SVHN, "split_list", published)
    dataset = _load("SVHN", tmp_path, train_split="train", test_split="test", size=None)
    assert np.array_equal(dataset.train.images.permute(2, 3, 1, 0).numpy(), pixels)
    assert dataset.test.labels.tolist() == [1, 2, 3, 1, 2, 0]
    assert dataset.class_names == ("0", "1", "2", "3")


def _refused(message: str, *args: object, **options: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _load(*args, **options)
    assert "\n" not in str(caught.value)


def test_missing_files_say_how_to_fetch_them(tmp_path):
    """Nothing is downloaded unasked."""
    _refused(
        r"^torchvision cannot open MNIST in .* with \{'train': True\} \(Dataset not found.*\); check root, or set "
        "download=true to fetch it$",
        "MNIST",
        tmp_path,
    )


def test_a_pickle_that_is_not_the_published_one_is_never_read(tmp_path):
    """CIFAR's MD5 sums are compared before anything is unpickled, so a planted file does not run."""

    class Planted:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("it ran",))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*[f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Planted()))
    _refused("^torchvision cannot open CIFAR10 .*not found or corrupted", "CIFAR10", tmp_path)
    assert not tmp_path.joinpath("ran").exists()


def test_a_truncated_file_is_refused(tmp_path):
    """A label file that lost its end is an error of one line."""
    _mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-2])
    _refused(r"^torchvision cannot open MNIST in .* with \{'train': False\}", "MNIST", tmp_path)


def test_options_that_the_class_does_not_know_are_refused(tmp_path):
    """The class's own complaint is passed on."""
    _refused(r"unexpected keyword argument 'colour'", "MNIST", tmp_path, options={"colour": "red"})


@pytest.mark.parametrize("name", ["FakeData", "EuroSAT"])
def test_a_set_without_halves_is_refused(tmp_path, name):
    """A set that has no train and test images of its own cannot be used."""
    _refused(
        f"^torchvision's {name} has no train and test images of its own; use another set$", name, tmp_path
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("CIFAR11", "did you mean 'CIFAR10'"), ("wrap_dataset_for_transforms_v2", ""), ("zzz", "see ")],
)
def test_an_unknown_set_is_refused(tmp_path, name, hint):
    """The closest name is given; a function is no set."""
    with pytest.raises(UnknownName, match=f"^torchvision has no data set '{name}'; {hint}"):
        _load(name, tmp_path)


def test_a_set_that_is_not_for_classification_is_refused(tmp_path):
    """Kitti's targets are boxes."""
    from PIL import Image

    for folder in ("training/image_2", "training/label_2", "testing/image_2"):
        (tmp_path / "Kitti" / "raw" / folder).mkdir(parents=True)
    for folder in ("training", "testing"):
        Image.new("RGB", (4, 4)).save(tmp_path / "Kitti" / "raw" / folder / "image_2" / "0.png")
    (tmp_path / "Kitti" / "raw" / "training" / "label_2" / "0.txt").write_text("")
    _refused(r"^Kitti has the label \[\]; only sets with class numbers can be used$", "Kitti", tmp_path)


def test_a_corrupt_image_is_counted_out(tmp_path):
    """An image that cannot be decoded is named by its number."""
    for folder in ("training/image_2", "training/label_2", "testing/image_2"):
        (tmp_path / "Kitti" / "raw" / folder).mkdir(parents=True)
    for folder in ("training", "testing"):
        (tmp_path / "Kitti" / "raw" / folder / "image_2" / "0.png").write_bytes(b"text")
    _refused(
        r"^Kitti: image 0 cannot be read \(cannot identify image file .*\); fetch the set again$",
        "Kitti",
        tmp_path,
    )
