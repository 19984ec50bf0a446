"""Parts that take turns."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fedadapt.codecs import Key, make_codec
from fedadapt.seeds import Seeds


@pytest.mark.parametrize(("total", "period"), [(11, 10), (25, 10), (30, 10), (7, 3)])
def test_no_value_is_sent_more_often_than_others(total, period):
    """After `period` rounds all were sent; after many, each as often as any other, or once more."""
    codec, values = make_codec(f"mask(period={period})"), {"w": torch.ones(total)}
    sent = Counter()
    for round in range(1, 101):
        key = Key(Seeds(0), "test", round)
        back = codec.decode(codec.encode(values, key), {"w": torch.Size([total])}, key)["w"]
        sent.update(back.nonzero()[:, 0].tolist())
        if round == period:
            assert len(sent) == total
    assert max(sent.values()) - min(sent.values()) <= 1
