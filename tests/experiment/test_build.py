"""What a built experiment says of the bytes that the frozen network costs once."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny

from fedadapt.backbones.backbone import content
from fedadapt.errors import AttachError
from fedadapt.experiment.build import build
from fedadapt.params import Group


def statistics_bytes(experiment):
    """Of the running statistics, which full fine-tuning neither trains nor shares."""
    tensors = content(experiment.backbone.module, experiment.backbone.head)
    return sum(tensor.nbytes for name, tensor in tensors if "running" in name)


def test_what_comes_with_the_first_download_is_not_fetched_before():
    """With full fine-tuning all but the statistics; the head belongs to no backbone; of steps nothing comes."""
    full = build(tiny("adapter=full"))
    assert full.bytes_once == statistics_bytes(full)
    head = build(tiny("adapter=head"))
    assert head.bytes_once == head.backbone.num_bytes
    steps = build(tiny("adapter=full", "codec=int8"))
    assert steps.bytes_once == steps.backbone.num_bytes


@pytest.mark.parametrize(("rounding", "share"), [("float16", 0.6), ("int8", 0.4)])
def test_a_rounded_backbone_is_what_everybody_starts_from(rounding, share):
    """It costs less once, has a digest of its own, and is what full fine-tuning starts from."""
    plain, rounded = (
        build(tiny("adapter=full")),
        build(tiny("adapter=full", f"federation.backbone_as={rounding}")),
    )
    assert rounded.backbone.num_bytes < share * plain.backbone.num_bytes
    assert rounded.bytes_once == statistics_bytes(rounded)
    assert rounded.wire.identity.backbone != plain.wire.identity.backbone
    kernels = [name for name, group in plain.model.groups.items() if group is Group.BACKBONE]
    weights = [name for name in kernels if name in plain.model.start and plain.model.start[name].ndim > 1]
    assert weights
    assert all((plain.model.start[name] != rounded.model.start[name]).any() for name in weights)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["backbone={name='timm', model='vit_tiny_patch16_224', pretrained=false}"],
            r"3x12x12 \(Input height \(12\) doesn't match model \(224\)",
        ),
        (["data.source={name='npz', path='grey.npz', channels=1}"], r"1x12x12 \(.*channels"),
    ],
)
def test_images_that_the_network_cannot_take_are_refused(settings, said, tmp_path, monkeypatch):
    """It is tried out on images of the data's shape, so that the message comes before the run does."""
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((60, 12, 12), dtype=np.uint8), np.arange(60) % 3
    np.savez("grey.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(AttachError, match=said):
        build(tiny("data.limit=40", *settings))
    assert build(tiny()).model.backbone.image == (3, 12, 12)
