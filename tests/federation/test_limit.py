"""A frame that a party's own codec makes is never longer than the other side reads."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import tiny_model, tiny_wire

from fedadapt.federation.frame import Kind


@pytest.mark.parametrize(
    "codec",
    [
        "float32", "rotate(block=16384)", "rotate(block=16384) > int8", "sparse_ternary(keep=1)",
        "sparse_ternary(keep=1, block=8) > zstd", "topk(fraction=1) > float32", "rotate(block=16384) > int8 @3 rotate(block=16384)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("streams", [1, 2])
def test_what_is_written_is_read(codec, streams):
    """Also where a codec fills up small sections to more than they were."""
    model = tiny_model("head")
    wire = tiny_wire(model, codec)
    noise = torch.Generator().manual_seed(0)
    sent = {
        f"s{number}": {
            name: torch.randn(shape, generator=noise) for name, shape in wire.plan.layout().items()
        }
        for number in range(streams)
    }
    for round in (1, 5):
        frame = wire.write(Kind.UPLOAD, round, 0, sent, ())
        assert len(frame) <= wire.limit(streams)
        assert wire.read(frame, Kind.UPLOAD, round, 0, list(sent), 0).streams.keys() == sent.keys()
