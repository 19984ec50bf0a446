"""Array files: what is read, and every way in which one is refused."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedadapt.data.images import fit
from fedadapt.errors import ConfigError, DataError
from fedadapt.registry import create


def _arrays(train: int = 10, test: int = 4, *, shape: tuple[int, ...] = (4, 4, 3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": (np.arange(train) % 3).astype(np.uint8),
        "x_test": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": (np.arange(test) % 3).astype(np.int64),
        "class_names": np.array(["ant", "bee", "cat"]),
    }


@pytest.fixture
def load(tmp_path):
    """Writes arrays to a file and loads it with options."""

    def write_and_load(arrays: dict[str, np.ndarray], **options: object):
        np.savez(tmp_path / "set.npz", **arrays)
        return create("source", "npz", {"path": tmp_path / "set.npz", **options})

    return write_and_load


def test_arrays_come_back_channels_first(load):
    """Images, labels and names are those of the file; the name is that of the file."""
    arrays = _arrays()
    dataset = load(arrays)
    assert dataset.name == "set"
    assert dataset.class_names == ("ant", "bee", "cat")
    assert np.array_equal(dataset.train.images.permute(0, 2, 3, 1).numpy(), arrays["x_train"])
    assert np.array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), arrays["x_test"])
    assert dataset.train.labels.tolist() == arrays["y_train"].tolist()
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.validation is None
    assert dataset.train.domains is None


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_a_single_channel_is_repeated_unless_one_is_asked_for(load, shape):
    """Grey images get three equal channels, or keep one with channels=1."""
    arrays = _arrays(shape=shape)
    plain = torch.from_numpy(arrays["x_train"].reshape(10, 1, 4, 5))
    assert torch.equal(load(arrays).train.images, plain.expand(-1, 3, -1, -1))
    assert torch.equal(load(arrays, channels=1).train.images, plain)


def test_validation_and_domains_are_read(load):
    """x_val becomes the validation split; domain_train and domain_test go with their images."""
    arrays = _arrays()
    arrays |= {"x_val": arrays["x_test"], "y_val": arrays["y_test"]}
    arrays |= {"domain_train": np.arange(10) % 2, "domain_test": np.arange(4) % 2}
    dataset = load(arrays)
    assert torch.equal(dataset.validation.images, dataset.test.images)
    assert dataset.train.domains.tolist() == [0, 1] * 5
    assert dataset.test.domains.tolist() == [0, 1] * 2
    assert dataset.validation.domains is None


@pytest.mark.parametrize(
    ("given", "expected"), [([7, 7, 3, 9, 3], [1, 1, 0, 2, 0]), (list("cacbb"), [2, 0, 2, 1, 1])]
)
def test_ids_are_numbered(load, given, expected):
    """id_train is any whole numbers or text; owners are numbered in ascending order."""
    dataset = load(_arrays() | {"id_train": np.array(given * 2)})
    assert dataset.train.ids.tolist() == expected * 2
    assert dataset.test.ids is None


@pytest.mark.parametrize("names", ["coarse_names", "class_names_coarse"])
def test_other_labels_with_their_names(load, names):
    """labels="coarse" takes y_train_coarse, y_test_coarse and their names."""
    arrays = _arrays()
    arrays |= {
        "y_train_coarse": np.arange(10) % 2,
        "y_test_coarse": np.arange(4) % 2,
        names: np.array(["x", "y"]),
    }
    dataset = load(arrays, labels="coarse")
    assert dataset.train.labels.tolist() == [0, 1] * 5
    assert dataset.class_names == ("x", "y")


def test_classes_without_names_are_numbered(load):
    """Without class_names the highest label decides, of the train images before `limit` too."""
    arrays = _arrays()
    del arrays["class_names"]
    assert load(arrays, limit=1).class_names == ("0", "1", "2")


def test_without_test_images_train_images_are_split(load):
    """A fifth of the train images is held out, the same for the same seed."""
    arrays = {key: value for key, value in _arrays(30).items() if not key.endswith("test")}
    first, again, other = load(arrays), load(arrays), load(arrays, seed=1)
    assert (len(first.train), len(first.test)) == (24, 6)
    assert torch.bincount(first.test.labels).tolist() == [2, 2, 2]
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    assert len(load(arrays, test_fraction=0.5).test) == 15


def test_limit_draws_train_images(load):
    """`limit` keeps that many images with their labels, drawn by the seed; the test set stays whole."""
    whole, first, again, other = (
        load(_arrays(50), **o) for o in ({}, *[{"limit": 9, "seed": s} for s in (0, 0, 1)])
    )
    assert (len(first.train), len(first.test)) == (9, 4)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    place = {
        bytes(image.contiguous().numpy()): int(label)
        for image, label in zip(whole.train.images, whole.train.labels, strict=True)
    }
    assert [
        place[bytes(image.contiguous().numpy())] for image in first.train.images
    ] == first.train.labels.tolist()


def test_a_limit_beyond_the_set_keeps_it(load):
    """A limit that is larger than the set changes nothing."""
    assert len(load(_arrays(), limit=1000).train) == 10


def test_size_resizes_every_split(load):
    """All splits are fitted to squares."""
    arrays = _arrays(shape=(6, 8, 3))
    arrays |= {"x_val": arrays["x_test"], "y_val": arrays["y_test"]}
    whole, small = load(arrays), load(arrays, size=3)
    for name in ("train", "test", "validation"):
        assert torch.equal(getattr(small, name).images, fit(getattr(whole, name).images, 3))


def test_compressed_files_are_read(tmp_path):
    """Deflated and LZMA members are as good as stored ones."""
    arrays = _arrays()
    np.savez_compressed(tmp_path / "deflate.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{key}.npy", buffer.getvalue())
    first, second = (
        create("source", "npz", {"path": tmp_path / f"{name}.npz"}) for name in ("deflate", "lzma")
    )
    assert torch.equal(first.train.images, second.train.images)


def _without(key: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in _arrays().items() if name != key}


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            _without("x_train"),
            {},
            "is not an image set with a train split: it has no 'x_train'; it has y_train, x_test, y_test, class_names",
        ),
        (
            {f"w{n}": np.zeros(1) for n in range(12)},
            {},
            "it has w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 2 more$",
        ),
        ({}, {}, "is not an image set with a train split: it has no 'x_train'; it has no arrays"),
        (_without("y_train"), {}, "it has no 'y_train'; it has x_train, x_test, y_test, class_names"),
        (_arrays(), {"labels": "coarse"}, "it has no 'y_train_coarse'; it has x_train, y_train, "),
        (_without("y_test"), {}, "has 'x_test', but no 'y_test'; every image needs a label"),
        (
            _arrays() | {"x_train": np.zeros((10, 4, 4), np.float32)},
            {},
            "'x_train' has type float32; images must be uint8, multiply by 255 if they are 0..1, round and cast",
        ),
        (
            _arrays() | {"x_test": np.zeros((4, 4, 4), np.int64)},
            {},
            "'x_test' has type int64; images must be uint8, cast them",
        ),
        (
            _arrays() | {"x_train": np.zeros((10, 16), np.uint8)},
            {},
            r"'x_train' has shape \[10, 16\]; images must be \[N, H, W\] or \[N, H, W, C\] with C 1 or 3, and not empty",
        ),
        (
            _arrays() | {"x_train": np.zeros((10, 4, 4, 2), np.uint8)},
            {},
            r"'x_train' has shape \[10, 4, 4, 2\]",
        ),
        (_arrays() | {"x_train": np.zeros((0, 4, 4), np.uint8)}, {}, r"'x_train' has shape \[0, 4, 4\]"),
        (_arrays(), {"channels": 1}, "'x_train' has 3 channels, but channels=1; set channels=3"),
        (
            _arrays() | {"y_train": np.zeros(9, np.int64)},
            {},
            "'y_train' has 9 entries for 10 images; it must have one an image",
        ),
        (
            _arrays() | {"y_train": np.zeros(10)},
            {},
            r"'y_train' has type float64 and shape \[10\]; it must be whole numbers \[N\]",
        ),
        (
            _arrays() | {"y_train": np.zeros((10, 1), int)},
            {},
            r"'y_train' has type int64 and shape \[10, 1\]; ",
        ),
        (
            _arrays() | {"y_train": np.full(10, -2)},
            {},
            "'y_train' has a negative entry -2; it must count from 0",
        ),
        (
            _arrays() | {"domain_train": np.full(10, -1)},
            {},
            "'domain_train' has a negative entry -1; it must count from 0",
        ),
        (
            _arrays() | {"id_train": np.zeros(9, int)},
            {},
            r"'id_train' has type int64 and shape \[9\]; it must be whole numbers or text, one for each of 10 images",
        ),
        (
            _arrays() | {"y_test": np.full(4, 3)},
            {},
            "data set 'set' has test labels from 3 to 3, but 3 classes",
        ),
        (
            _without("class_names") | {"y_test": np.full(4, 10**9)},
            {},
            "has a label 1000000000 among 14 images; ",
        ),
        (
            _arrays() | {"class_names": np.arange(3)},
            {},
            r"class names have type int64 and shape \[3\]; they must be text \[D\]",
        ),
        (
            _arrays(),
            {"max_bytes": 500},
            "declares [0-9]+ bytes of arrays, more than max_bytes=500; raise max_bytes if the file is to be trusted",
        ),
        (
            _arrays() | {"y_train": np.array([None] * 10)},
            {},
            r"is not a readable .npz file \(Object arrays cannot be loaded when allow_pickle=False\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(load, arrays, options, message):
    """Each is one line that names the array, what it is and what it should be."""
    with pytest.raises(DataError, match=message) as caught:
        load(arrays, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    """The message names the path; a folder is no file."""
    for path in (tmp_path / "no.npz", tmp_path):
        with pytest.raises(DataError, match=f"^there is no file {path}; set path to a .npz file$"):
            create("source", "npz", {"path": path})


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    """Anything but a zip file says so in one line."""
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(
        DataError, match=r"is not a readable .npz file \(File is not a zip file\); write it again"
    ):
        create("source", "npz", {"path": tmp_path / "set.npz"})


def test_a_member_that_is_no_array_is_refused(tmp_path):
    """A zip file of something else is not an image set."""
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x_train.npy", b"something else")
        archive.writestr("y_train.npy", b"something else")
    with pytest.raises(DataError, match=r"is not a readable .npz file"):
        create("source", "npz", {"path": tmp_path / "set.npz"})


def test_an_unknown_format_version_is_refused(tmp_path):
    """Version 3 of the format is for named fields, which images do not have."""
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for key in ("x_train", "y_train"):
            archive.writestr(f"{key}.npy", b"\x93NUMPY\x03\x00\x00\x00\x00\x00")
    with pytest.raises(DataError, match=r"\(array 'x_train' has format version \(3, 0\)\)"):
        create("source", "npz", {"path": tmp_path / "set.npz"})


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path):
    """A small file that declares a petabyte is refused by its header alone."""
    arrays = _arrays()
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for key in ("x_train", "y_train"):
            buffer = io.BytesIO()
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (2**50,) if key == "x_train" else (10,),
            }
            np.lib.format.write_array_header_1_0(buffer, header)
            archive.writestr(f"{key}.npy", buffer.getvalue() + arrays["y_train"].tobytes())
    with pytest.raises(
        DataError, match=rf"declares {2**50 + 10} bytes of arrays, more than max_bytes={2**34}; "
    ):
        create("source", "npz", {"path": tmp_path / "set.npz"})


def test_texts_of_no_characters_take_memory_all_the_same(load, tmp_path):
    """A few bytes declare five million class names that have none."""
    arrays = _arrays()
    del arrays["class_names"]
    load(arrays)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<U0", "fortran_order": False, "shape": (5_000_000,)}
    )
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr("class_names.npy", header.getvalue())
    with pytest.raises(DataError, match=r"declares 5000\d\d\d bytes"):
        create("source", "npz", {"path": tmp_path / "set.npz", "max_bytes": 1_000_000})


def _labelled(dataset) -> set[tuple[bytes, int]]:
    return {
        (image.contiguous().numpy().tobytes(), int(label))
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_right(tmp_path, data):
    """A cut or a changed byte ends in a DataError of one line, or leaves images and labels as they were."""
    path, whole = tmp_path / "set.npz", tmp_path / "whole.npz"
    if not whole.exists():
        np.savez(whole, **_arrays())
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read = create("source", "npz", {"path": path})
    except DataError as error:
        assert "\n" not in str(error)
    else:
        # The names of arrays have no checksum: if that of x_test is hit, its images are missing, not wrong.
        assert _labelled(read) <= _labelled(create("source", "npz", {"path": whole}))


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    """What the system refuses is passed on as one line."""

    def refuse(*args: object) -> None:
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "set.npz").write_bytes(b"")
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match=r"\(\[Errno 13\] Permission denied\)"):
        create("source", "npz", {"path": tmp_path / "set.npz"})


@pytest.mark.parametrize(
    "options", [{"channels": 2}, {"limit": 0}, {"test_fraction": 1.0}, {"size": 0}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(options):
    """Each is refused by its name before the file is looked for."""
    with pytest.raises(ConfigError, match=f"^source 'npz': key '{next(iter(options))}' is "):
        create("source", "npz", {"path": "set.npz", **options})
