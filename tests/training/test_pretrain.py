"""A pretraining that was stopped ends bit for bit where it would have ended."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from contracts.cases import CLASSES, tiny_backbone, tiny_split
from safetensors import safe_open

from fedadapt.data.dataset import Dataset
from fedadapt.errors import ConfigError, RunError
from fedadapt.training.pretrain import PretrainConfig, pretrain, top1

CONFIG = PretrainConfig(
    epochs=3, batch_size=8, lr=0.05, resolutions=((1, 8), (2, 12)), pad=1, bf16=False, seed=5
)
DATA = Dataset(
    "noise", tiny_split(30), tiny_split(6, seed=1), tuple("abcde"), validation=tiny_split(10, seed=2)
)
assert len(DATA.class_names) == CLASSES


class Stopped(Exception):
    """The power went out."""


def network(seed=0):
    """A fresh network whose weights want gradients."""
    return tiny_backbone(seed).module.requires_grad_()


def without_clock(log):
    """The log without its times."""
    return [{key: value for key, value in entry.items() if not key.endswith("_s")} for entry in log]


def stop(entry):
    """Stops after the first epoch."""
    raise Stopped


@pytest.mark.parametrize("bf16", [False, True])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, bf16):
    """Weights, running statistics and log equal those of a training that was never stopped."""
    config = CONFIG.model_copy(update={"bf16": bf16})
    whole, stopped, resumed = network(), network(), network(seed=9)
    expected = pretrain(whole, DATA, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        pretrain(stopped, DATA, config, tmp_path / "stopped", on_epoch=stop)
    told = []
    log = pretrain(resumed, DATA, config, tmp_path / "stopped", on_epoch=told.append)
    assert [entry["epoch"] for entry in told] == [2, 3]
    assert without_clock(log) == without_clock(expected)
    assert [entry["pixels"] for entry in log] == [8, 12, 12]
    for (name, tensor), expected_tensor in zip(
        resumed.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, expected_tensor), name
    assert not whole.training
    assert log[-1]["validation_top1"] == top1(whole, DATA.validation, DATA.mean, DATA.std)


def test_the_state_of_another_recipe_is_refused(tmp_path):
    """It is not trained on with other settings."""
    with pytest.raises(Stopped):
        pretrain(network(), DATA, CONFIG, tmp_path / "state", on_epoch=stop)
    with pytest.raises(RunError, match="another recipe"):
        pretrain(network(), DATA, CONFIG.model_copy(update={"lr": 0.1}), tmp_path / "state")


def test_the_state_of_other_images_is_refused(tmp_path):
    """What was learnt on other data is not taken for this."""
    with pytest.raises(Stopped):
        pretrain(network(), DATA, CONFIG, tmp_path / "state", on_epoch=stop)
    with pytest.raises(RunError, match="another recipe"):
        pretrain(network(), replace(DATA, name="others"), CONFIG, tmp_path / "state")


def test_the_state_of_another_start_is_refused(tmp_path):
    """What began from one network's weights does not go on as another's; random weights are a start as well."""
    with pytest.raises(Stopped):
        pretrain(network(), DATA, CONFIG, tmp_path / "state", started_from="a", on_epoch=stop)
    for other in ("b", None):
        with pytest.raises(RunError, match="another recipe, data set or start"):
            pretrain(network(), DATA, CONFIG, tmp_path / "state", started_from=other)
    assert len(pretrain(network(), DATA, CONFIG, tmp_path / "state", started_from="a")) == CONFIG.epochs


def test_a_state_from_before_starts_were_written_down_goes_on(tmp_path):
    """It was of random weights, and says nothing of them."""
    with pytest.raises(Stopped):
        pretrain(network(), DATA, CONFIG, tmp_path / "state", on_epoch=stop)
    with safe_open(tmp_path / "state", "pt") as file:
        images = [DATA.name, len(DATA.train), DATA.mean, DATA.std]
        assert file.metadata()["config"] == json.dumps([CONFIG.model_dump(mode="json"), *images])


def test_a_batch_larger_than_the_split_is_refused(tmp_path):
    """There would be no step."""
    with pytest.raises(ConfigError, match="batch_size"):
        pretrain(network(), DATA, CONFIG.model_copy(update={"batch_size": 10**6}), tmp_path / "state")


@pytest.mark.parametrize("size", [0, 50, -1])
def test_a_damaged_state_is_refused(tmp_path, size):
    """Wherever it was cut off."""
    with pytest.raises(Stopped):
        pretrain(network(), DATA, CONFIG, tmp_path / "state", on_epoch=stop)
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:size])
    with pytest.raises(RunError, match="not a readable pretraining state"):
        pretrain(network(), DATA, CONFIG, tmp_path / "state")


def test_the_rate_rises_and_falls():
    """Linear to the top at the end of the warm-up, half a cosine down to zero."""
    config = PretrainConfig(lr=0.4, warmup_fraction=0.2)
    assert [config.rate(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])


def test_the_last_resolution_goes_on():
    """Epochs beyond the list stay at its last size; without a list images keep theirs."""
    config = PretrainConfig(resolutions=((1, 16), (2, 24), (1, 32)))
    assert [config.pixels(epoch, 64) for epoch in range(6)] == [16, 24, 24, 32, 32, 32]
    assert PretrainConfig().pixels(3, 64) == 64


def test_a_training_that_diverges_is_no_backbone(tmp_path):
    """It ends with what to do, and the state on disk is that of the last epoch that was sound."""
    wild = CONFIG.model_copy(update={"lr": 1e30, "bf16": False})
    with pytest.raises(RunError, match=r"diverged in epoch \d, its loss is .*lower train.lr"):
        pretrain(network(), DATA, wild, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_state_that_cannot_be_written_is_one_line(tmp_path):
    """Where a folder should be there is a file."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write .*another FILE") as error:
        pretrain(network(), DATA, CONFIG, tmp_path / "file" / "state")
    assert "\n" not in str(error.value)


def test_images_have_at_least_a_pixel():
    """A resolution of nothing is refused where the recipe is read."""
    with pytest.raises(ValueError, match="greater than 0"):
        PretrainConfig(resolutions=((1, 0),))
