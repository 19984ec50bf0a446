"""Weight files come back bit for bit, and no other file is taken for one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedadapt.backbones.resnet import cifar_resnet
from fedadapt.backbones.weights import load_weights, locate, save_weights, shipped
from fedadapt.errors import BackboneError
from fedadapt.registry import create

MOMENTS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


def narrow(seed):
    """A small network with random weights."""
    return create("backbone", "resnet20", {"width": 0.25})(10, torch.Generator().manual_seed(seed)).module


@pytest.fixture
def file(tmp_path):
    """A weight file of `narrow(0)`."""
    path = tmp_path / "narrow.safetensors"
    save_weights(narrow(0), path, MOMENTS)
    return path


def test_a_weight_file_comes_back(file):
    """All tensors but the head's are those that were saved, and the moments come with them."""
    module, saved = narrow(1), narrow(0).state_dict()
    head = module.fc.weight.clone()
    assert load_weights(module, file, "fc") == (tuple(MOMENTS["mean"]), tuple(MOMENTS["std"]))
    for name, tensor in module.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, saved[name]), name
    assert torch.equal(module.fc.weight, head)
    assert not list(file.parent.glob("*.part"))


def test_a_backbone_reads_its_file(file):
    """The registered backbone has the file's weights and moments, whatever its number of classes."""
    build = create("backbone", "resnet20", {"width": 0.25, "weights": str(file)})
    one, other = build(10, torch.Generator().manual_seed(1)), build(3, torch.Generator().manual_seed(2))
    assert one.digest == other.digest
    assert (one.mean, one.std) == (tuple(MOMENTS["mean"]), tuple(MOMENTS["std"]))


def test_half_precision_files_are_widened(tmp_path):
    """A file of bfloat16 weights fills an fp32 network."""
    save_weights(narrow(0), tmp_path / "half.safetensors", {}, lambda name, tensor: {name: tensor.bfloat16()})
    module = narrow(1)
    assert load_weights(module, tmp_path / "half.safetensors", "fc") is None
    assert module.conv1.weight.dtype == torch.float32
    assert torch.equal(module.conv1.weight, narrow(0).conv1.weight.bfloat16().float())


def test_a_missing_file_is_refused(tmp_path):
    """The message has the path."""
    with pytest.raises(BackboneError, match="no weight file at .*gone.safetensors"):
        locate(str(tmp_path / "gone.safetensors"))


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.pkl", "weights"])
def test_a_file_that_could_run_code_is_not_opened(tmp_path, name):
    """Pickles are refused by their suffix, present or not."""
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(BackboneError, match="safetensors"):
        locate(str(tmp_path / name))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_corrupt_file_is_refused(file, size):
    """A file that was cut off anywhere is not read."""
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_weights(narrow(1), file, "fc")


def test_a_file_of_another_network_is_refused(file):
    """Other depth, other width and an extra tensor are each told apart."""
    with pytest.raises(BackboneError, match="another network"):
        load_weights(cifar_resnet(32, width=0.25), file, "fc")
    with pytest.raises(BackboneError, match="with shape"):
        load_weights(cifar_resnet(20, width=0.5), file, "fc")
    save_file(load_file(file) | {"extra": torch.zeros(1)}, file)
    with pytest.raises(BackboneError, match="1 unknown, for instance 'extra'"):
        load_weights(narrow(1), file, "fc")


def test_shipped_weights_are_found_by_name():
    """Each shipped name leads to a file, and one of them is the default of resnet26."""
    assert "resnet26-tiny-imagenet-32" in shipped()
    assert all(locate(name).is_file() for name in shipped())


@pytest.mark.parametrize(
    "moments",
    [
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.0, 0.1]},
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2]},
        {"mean": [0.5, float("nan"), 0.3], "std": [0.2, 0.2, 0.1]},
    ],
)
def test_moments_that_no_pixels_have_are_refused(tmp_path, moments):
    """Dividing by them would be the client's trouble, round after round."""
    save_weights(narrow(0), tmp_path / "odd.safetensors", moments)
    with pytest.raises(BackboneError, match="pixel moments that none have"):
        load_weights(narrow(1), tmp_path / "odd.safetensors", "fc")


def test_metadata_without_end_is_damaged(tmp_path):
    """A hundred thousand brackets are an error in one line, not a stack without room."""
    tensors = {name: t for name, t in narrow(0).state_dict().items() if not name.endswith("tracked")}
    save_file(tensors, tmp_path / "deep.safetensors", metadata={"mean": "[" * 100_000, "std": "[]"})
    with pytest.raises(BackboneError, match="nested too deep"):
        load_weights(narrow(1), tmp_path / "deep.safetensors", "fc")
