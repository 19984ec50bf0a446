"""Hugging Face data sets, from local files."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from PIL import Image

from fedadapt.errors import ConfigError, DataError
from fedadapt.registry import create


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads with a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def load_with_options(path, **options: object):
        return create(
            "source", "huggingface", {"path": str(path), "cache_dir": tmp_path / "cache", **options}
        )

    return load_with_options


def _table(count: int, kind: object = None, **columns: list[object]) -> datasets.Dataset:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    features = {"image": datasets.Image(), "label": kind or ClassLabel(names=["cat", "dog"])}
    data = {"image": [Image.fromarray(image) for image in pixels], "label": [n % 2 for n in range(count)]}
    for name, values in columns.items():
        data[name] = values
        features.setdefault(name, Value("string"))
    return datasets.Dataset.from_dict(data, Features(features))


@pytest.fixture
def folder(tmp_path):
    """A folder of Parquet files with ten train and four test images."""
    path = tmp_path / "pets"
    path.mkdir()
    _table(10).to_parquet(path / "train.parquet")
    _table(4).to_parquet(path / "test.parquet")
    return path


def test_parquet_with_images_and_class_labels(load, folder):
    """Images come back bit for bit, with the names of the class labels."""
    dataset = load(folder)
    pixels = np.random.default_rng(10).integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
    assert np.array_equal(dataset.train.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert dataset.train.labels.tolist() == [0, 1] * 5
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.test) == 4
    assert dataset.train.domains is None


def test_size_resizes(load, folder):
    """Images are fitted to the size asked for."""
    assert load(folder, size=3).train.images.shape == (10, 3, 3, 3)


def test_integers_are_numbered_classes(load, tmp_path):
    """Without class labels, classes are called by their number."""
    path = tmp_path / "numbers"
    path.mkdir()
    for split in ("train", "test"):
        _table(4, Value("int32")).to_parquet(path / f"{split}.parquet")
    assert load(path).class_names == ("0", "1")


def test_one_file_is_split(load, tmp_path):
    """A single Parquet file is train images; with test_split="" a share of them becomes the test set."""
    _table(10).to_parquet(tmp_path / "one.parquet")
    dataset = load(tmp_path / "one.parquet", test_split="")
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    assert sorted(dataset.test.labels.tolist()) == [0, 1]
    assert torch.equal(load(tmp_path / "one.parquet", test_split="").test.images, dataset.test.images)


def test_one_file_is_not_its_own_test_set(load, tmp_path):
    """A file that has no test split is refused rather than tested on."""
    _table(10).to_parquet(tmp_path / "one.parquet")
    _refused(
        load, r"^cannot load split 'test' of data set '.*' \(Unknown split \"test\"", tmp_path / "one.parquet"
    )


def test_columns_give_domains_and_ids(load, tmp_path):
    """Places and people are numbered in sorted order over both splits."""
    path = tmp_path / "places"
    path.mkdir()
    _table(4, writer=["b", "c", "b", "c"], person=[7, 3, 3, 9]).to_parquet(path / "train.parquet")
    _table(2, writer=["a", "c"], person=[3, 3]).to_parquet(path / "test.parquet")
    dataset = load(path, domain="writer", id="person")
    assert dataset.train.domains.tolist() == [1, 2, 1, 2]
    assert dataset.test.domains.tolist() == [0, 2]
    assert (dataset.train.ids.tolist(), dataset.test.ids.tolist()) == ([1, 0, 0, 2], [0, 0])


def test_image_folders_are_read(load, tmp_path):
    """A local folder of class folders is a data set too."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "files" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "files" / split / name / "0.png")
    dataset = load(tmp_path / "files")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.test.labels.tolist() == [0, 1]


def _refused(load, message: str, path, **options: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_set_is_refused(load, tmp_path):
    """A path that is neither here nor on the hub names itself."""
    _refused(
        load,
        "^cannot load split 'train' of data set '.*nowhere' .*; check path, subset and splits$",
        tmp_path / "nowhere",
    )


def test_a_missing_split_is_refused(load, folder):
    """The splits that there are are listed."""
    _refused(
        load,
        r"^cannot load split 'val' .* \(Unknown split \"val\". Should be one of \[.*'train'",
        folder,
        test_split="val",
    )


@pytest.mark.parametrize("option", ["image", "label", "domain", "id"])
def test_a_missing_column_is_refused(load, folder, option):
    """The message names the option to set and the columns that there are."""
    _refused(
        load,
        f"^data set '.*' has no column 'other'; set {option} to one of: image, label$",
        folder,
        **{option: "other"},
    )


def test_a_column_without_images_is_refused(load, folder):
    """Labels are no images."""
    _refused(
        load,
        "^column 'label' of data set '.*' holds ClassLabel.*; it must hold images$",
        folder,
        image="label",
    )


def test_labels_that_are_text_are_refused(load, tmp_path):
    """Text is no class number."""
    path = tmp_path / "text"
    path.mkdir()
    for split in ("train", "test"):
        _table(2, Value("string"), label=["a", "b"]).to_parquet(path / f"{split}.parquet")
    _refused(load, "^column 'label' of data set '.*' holds .*; it must hold class labels or integers$", path)


def test_missing_labels_are_refused(load, tmp_path):
    """Every image needs a class."""
    path = tmp_path / "gaps"
    path.mkdir()
    for split in ("train", "test"):
        _table(2, label=["dog", None]).to_parquet(path / f"{split}.parquet")
    _refused(load, "^data set '.*' has an image without 'label'; every image needs a class$", path)


def _columns(path, features, **columns):
    path.mkdir()
    for split in ("train", "test"):
        table = _table(2)
        for name, values in columns.items():
            table = table.remove_columns(name) if name in table.features else table
            table = table.add_column(name, values, feature=features)
        table.to_parquet(path / f"{split}.parquet")
    return path


@pytest.mark.parametrize("option", ["domain", "id"])
def test_origins_that_are_missing_or_no_single_value_are_refused(load, tmp_path, option):
    """Every image has one camera and one writer, of a kind that can be told apart."""
    gaps = _columns(tmp_path / "gaps", Value("string"), camera=["front", None])
    _refused(
        load,
        "^data set '.*' has an image without 'camera'; every image needs one",
        gaps,
        **{option: "camera"},
    )
    several = _columns(tmp_path / "several", {"name": Value("string")}, camera=[{"name": "a"}, {"name": "b"}])
    said = "^column 'camera' of data set '.*' holds {.*}; it must hold one text or number an image$"
    _refused(load, said, several, **{option: "camera"})


@pytest.mark.parametrize(
    ("kind", "labels"),
    [({"is": Value("int64")}, [{"is": 0}, {"is": 1}]), (datasets.List(Value("int64")), [[0], [1]])],
)
def test_labels_of_several_values_are_refused(load, tmp_path, kind, labels):
    """A class is one number."""
    path = _columns(tmp_path / "odd", kind, label=labels)
    _refused(load, "^column 'label' of data set '.*' holds .*; it must hold class labels or integers$", path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            {"bytes": b"text", "path": None},
            r"^data set '.*': image 1 cannot be read \(cannot identify image file",
        ),
        (None, "^data set '.*' has no image in row 1; every row needs one$"),
    ],
)
def test_images_that_cannot_be_read_are_refused(load, tmp_path, image, message):
    """The message names the row."""
    path = tmp_path / "broken"
    path.mkdir()
    for split in ("train", "test"):
        _table(2, image=[Image.new("RGB", (6, 4)), image]).to_parquet(path / f"{split}.parquet")
    _refused(load, message, path)


def test_a_file_of_another_kind_is_refused(load, tmp_path):
    """Of single files only Parquet is read."""
    (tmp_path / "set.py").write_text("raise SystemExit")
    _refused(
        load,
        r"^cannot read .*set.py; a local file must be a .parquet file, or name its folder$",
        tmp_path / "set.py",
    )


def test_code_in_a_folder_is_not_run(load, tmp_path):
    """A data set that is a program is refused, and the program stays where it is."""
    path = tmp_path / "program"
    path.mkdir()
    (path / "program.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _refused(load, "^cannot load split 'train'", path)
    assert not (tmp_path / "ran").exists()


def test_options_are_checked(load):
    """Unknown options are refused by name."""
    with pytest.raises(ConfigError, match="unknown key 'trust_remote_code'"):
        load("x", trust_remote_code=True)
