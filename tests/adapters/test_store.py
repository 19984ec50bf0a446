"""Adapter files come back bit for bit, and only onto what they were made for."""

from __future__ import annotations

import json

import pytest
import torch
from contracts.cases import jiggle, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedadapt.adapters import load_adapter, save_adapter
from fedadapt.adapters.store import FORMAT, read_manifest
from fedadapt.errors import AttachError


@pytest.fixture
def model():
    """An adapted tiny network with moving norms."""
    return tiny_model("parallel", "averaged")


@pytest.fixture
def file(model, tmp_path):
    """An adapter file of `model`."""
    path = tmp_path / "made" / "here.safetensors"
    save_adapter(model, jiggle(model.start), path)
    return path


def rewrite(file, *, manifest=None, tensors=None):
    """Writes `file` again with some of it changed."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    changed = json.loads(metadata["manifest"]) | (manifest or {})
    save_file(load_file(file) | (tensors or {}), file, metadata={"manifest": json.dumps(changed)})


def test_an_adapter_comes_back(model, file):
    """Names, order and bits are those that were saved, and no half-written file stays."""
    loaded, saved = load_adapter(model, file), jiggle(model.start)
    assert list(loaded) == list(saved)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_manifest_says_what_it_belongs_to(model, file):
    """Backbone, adapter, norms, sites and every tensor's group and shape can be read without the tensors."""
    manifest = read_manifest(file)
    assert manifest["format"] == FORMAT
    assert manifest["backbone_digest"] == model.backbone.digest
    assert (manifest["adapter"], manifest["norms"]) == ("parallel", "averaged")
    assert [site["name"] for site in manifest["sites"]] == [site.name for site in model.sites]
    assert {n: tuple(t["shape"]) for n, t in manifest["tensors"].items()} == {
        n: tuple(t.shape) for n, t in model.start.items()
    }
    assert manifest["tensors"]["fc.weight"]["group"] == "head"


def test_another_backbone_is_refused(file):
    """The same shapes on other weights are not enough."""
    with pytest.raises(AttachError, match="was trained on backbone 'tiny'"):
        load_adapter(tiny_model("parallel", "averaged", seed=1), file)


def test_another_adapter_is_refused(file):
    """One of another name, one that weighs its branches otherwise though its tensors fit, and one on other sites."""
    with pytest.raises(AttachError, match="is of adapter 'parallel' .* here it is 'norm_head'"):
        load_adapter(tiny_model("norm_head", "averaged"), file)
    with pytest.raises(AttachError, match=r"with scaling 1.0, here it is 'parallel' with 3.0"):
        load_adapter(tiny_model("parallel", "averaged", sites={"scaling": 3.0}), file)
    with pytest.raises(AttachError, match="does not fit adapter 'parallel' here: tensor"):
        load_adapter(tiny_model("parallel", "averaged", sites={"last": 2}), file)


def test_a_series_adapter_is_not_taken_for_a_parallel_one(tmp_path):
    """On the same sites their tensors have the same names and shapes, and they compute something else."""
    there = {"include": ["layer1.*"]}
    series, parallel = (tiny_model(name, sites=there) for name in ("series", "parallel"))
    assert {n: t.shape for n, t in series.start.items()} == {n: t.shape for n, t in parallel.start.items()}
    save_adapter(series, series.start, tmp_path / "x")
    with pytest.raises(AttachError, match="is of adapter 'series'"):
        load_adapter(parallel, tmp_path / "x")


def test_values_that_are_no_numbers_are_refused(model, file):
    """They are not written, and not read."""
    broken = jiggle(model.start) | {"fc.bias": torch.full_like(model.start["fc.bias"], float("nan"))}
    with pytest.raises(AttachError, match=r"to be saved holds infinite or NaN values, in 'fc.bias'"):
        save_adapter(model, broken, file)
    rewrite(file, tensors={"fc.bias": broken["fc.bias"]})
    with pytest.raises(AttachError, match=r"here.safetensors holds infinite or NaN values, in 'fc.bias'"):
        load_adapter(model, file)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_values_that_are_no_floats_are_refused(model, file, kind):
    """Whatever could be made of them."""
    rewrite(file, tensors={"fc.bias": torch.zeros(model.start["fc.bias"].shape).to(kind)})
    with pytest.raises(AttachError, match=r"holds 'fc.bias' as torch\..*; values must be floats"):
        load_adapter(model, file)


def test_halves_are_widened(model, file):
    """What was rounded to travel is computed with in fp32."""
    rewrite(file, tensors={"fc.bias": jiggle(model.start)["fc.bias"].half()})
    assert {tensor.dtype for tensor in load_adapter(model, file).values()} == {torch.float32}


def test_a_manifest_without_end_is_refused(model, file):
    """A hundred thousand brackets are an error in one line, not a stack without room."""
    save_file(load_file(file), file, metadata={"manifest": "[" * 100_000})
    with pytest.raises(AttachError, match="nested too deep"):
        load_adapter(model, file)


@pytest.mark.parametrize("lacking", ["adapter", "sites", "tensors", "backbone_digest"])
def test_a_manifest_that_does_not_say_what_it_is_of_is_refused(file, lacking):
    """It is read by `inspect` too, which shows every part of it."""
    manifest = read_manifest(file)
    del manifest[lacking]
    save_file(load_file(file), file, metadata={"manifest": json.dumps(manifest)})
    with pytest.raises(AttachError, match="it lacks what it should say"):
        read_manifest(file)


def test_a_folder_in_the_way_leaves_nothing_behind(model, tmp_path):
    """The error is the system's own, and no half-written file stays."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        save_adapter(model, model.start, str(tmp_path / "taken"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(model, file, size):
    """Wherever it was cut off."""
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(AttachError, match="not a readable adapter file"):
        load_adapter(model, file)


@pytest.mark.parametrize(
    "write", [lambda p: p.mkdir(), lambda p: save_file({"a": torch.ones(1)}, p), lambda p: None]
)
def test_what_is_no_adapter_file_is_refused(model, tmp_path, write):
    """A folder, other safetensors and nothing at all."""
    write(tmp_path / "x.safetensors")
    with pytest.raises(AttachError, match="not a readable adapter file"):
        load_adapter(model, tmp_path / "x.safetensors")


def test_another_format_is_refused(model, file):
    """The message names both formats."""
    rewrite(file, manifest={"format": "fedadapt-adapter-9"})
    with pytest.raises(AttachError, match="'fedadapt-adapter-9', this version reads 'fedadapt-adapter-1'"):
        load_adapter(model, file)


def test_an_altered_shape_is_refused(model, file):
    """Whether the manifest or the tensor itself was altered."""
    rewrite(file, tensors={"fc.bias": torch.zeros(9)})
    with pytest.raises(AttachError, match="'fc.bias'"):
        load_adapter(model, file)
    save_adapter(model, model.start, file)
    rewrite(file, manifest={"tensors": {"fc.bias": {"group": "head", "shape": [9]}}})
    with pytest.raises(AttachError, match="does not fit"):
        load_adapter(model, file)


def test_a_missing_tensor_or_key_is_refused(model, file):
    """A manifest that promises more than the file holds, or says too little, is damaged."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({n: t for n, t in tensors.items() if n != "fc.bias"}, file, metadata=metadata)
    with pytest.raises(AttachError, match="not a readable adapter file"):
        load_adapter(model, file)
    save_file(tensors, file, metadata={"manifest": json.dumps({"format": FORMAT})})
    with pytest.raises(AttachError, match="not a readable adapter file"):
        load_adapter(model, file)
