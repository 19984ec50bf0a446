"""Products of several pixels at once are the products of each."""

from __future__ import annotations

import pytest
import torch

from fedadapt.adapters.products import add_product, outer_product, pixels_at_once


@pytest.mark.parametrize(
    ("pixels", "inputs", "outputs", "joined"),
    [(8, 4, 4, 4), (8, 3, 4, 4), (6, 4, 4, 2), (7, 4, 4, 1), (8, 8, 4, 2), (8, 1, 1, 8), (8, 16, 4, 1)],
)
def test_they_are_those_of_torch(pixels, inputs, outputs, joined):
    """As many pixels are taken as divide their number and fit sixteen channels; the result is that of one matrix each."""
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(3, pixels, c, generator=generator) for c in (inputs, outputs))
    matrix = torch.randn(3, inputs, outputs, generator=generator)
    assert pixels_at_once(rows, outputs) == joined
    total = others.clone()
    add_product(total, rows, matrix)
    torch.testing.assert_close(total, others + rows @ matrix, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        outer_product(rows, others), torch.einsum("kpc,kpd->kcd", rows, others), rtol=1e-5, atol=1e-5
    )


def test_two_pixels_by_hand():
    """Pixels 1 and 2, matrices 10 and 100: sums 1 + 10 and 1 + 20, then 1 + 100 and 1 + 200; outer 1*1 + 2*3."""
    rows, total = torch.tensor([[[1.0], [2.0]]]).repeat(2, 1, 1), torch.ones(2, 2, 1)
    add_product(total, rows, torch.tensor([[[10.0]], [[100.0]]]))
    assert total.flatten().tolist() == [11, 21, 101, 201]
    assert outer_product(rows, torch.tensor([[[1.0], [3.0]]]).repeat(2, 1, 1)).flatten().tolist() == [7, 7]
