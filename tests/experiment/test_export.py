"""What is taken out of a run computes what the run measured."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny

from fedadapt.adapters import load_adapter
from fedadapt.backbones.resnet import cifar_resnet
from fedadapt.data.augment import normalise
from fedadapt.errors import AttachError, RunError
from fedadapt.experiment import run
from fedadapt.experiment.build import build
from fedadapt.experiment.export import export_adapter, export_merged
from fedadapt.runs.store import RunStore


@pytest.mark.parametrize("adapter", ["parallel", "norm_head", "full"])
def test_the_merged_network_is_a_plain_one(tmp_path, adapter):
    """A stock network with the exported tensors, and nothing of fedadapt, is as accurate as the run was."""
    config = tiny("rounds=2", "train.lr=0.1", f"adapter={adapter}")
    path = run(config, tmp_path)
    export_merged(path, tmp_path / "deep" / "merged.safetensors")
    plain = cifar_resnet(20, width=0.25)
    keys = plain.load_state_dict(load_file(tmp_path / "deep" / "merged.safetensors"), strict=False)
    assert not keys.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in keys.missing_keys)
    experiment = build(config)
    split = experiment.measured_on
    with torch.inference_mode():
        logits = plain.eval()(normalise(split.images, experiment.mean, experiment.std, torch.float32))
    accuracy = float((logits.argmax(1) == split.labels).float().mean())
    with RunStore.read(path) as store:
        assert accuracy == pytest.approx(store.rounds()[-1].metrics["accuracy"], abs=1.5 / len(split))
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["merged.safetensors"]


def test_the_adapter_file_holds_the_state(tmp_path):
    """An exported adapter loads onto its backbone as the global tensors of the run, and onto no other."""
    path = run(tiny("rounds=1"), tmp_path)
    file = tmp_path / "adapter.safetensors"
    export_adapter(path, file)
    with RunStore.read(path) as store:
        expected = store.state()["model"]
    loaded = load_adapter(build(tiny()).model, file)
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    with pytest.raises(AttachError, match="was trained on backbone 'resnet20'"):
        load_adapter(build(tiny("seed=1")).model, file)
    with pytest.raises(AttachError, match="does not fit adapter 'head'"):
        load_adapter(build(tiny("adapter=head")).model, file)


@pytest.mark.parametrize("export", [export_merged, export_adapter])
def test_a_place_that_cannot_be_written_is_named(tmp_path, export):
    """A folder in the file's place, or a file in the folder's, is an error in one line and leaves nothing."""
    path = run(tiny("rounds=1"), tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    for out in (tmp_path / "folder", tmp_path / "file" / "out.safetensors"):
        with pytest.raises(RunError, match="cannot write") as caught:
            export(path, out)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
