"""Each member of the family by numbers that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import tiny_backbone
from torch import nn

from fedadapt.adapters import attach, find_sites, load_adapter, merge, save_adapter
from fedadapt.adapters.diagonal import read_channels
from fedadapt.adapters.probe import noise
from fedadapt.errors import AttachError
from fedadapt.params import Group, expand, num_values
from fedadapt.registry import create

FULL = 5_817_258


@pytest.fixture(scope="module")
def resnet26():
    """The ResNet-26 of residual adapters with 10 classes."""
    return create("backbone", "resnet26", {"weights": "random"})(10, torch.Generator().manual_seed(0))


def model_of(backbone, adapter, seed=0, **options):
    """An adapted model on any backbone."""
    generator = torch.Generator().manual_seed(seed)
    return attach(backbone, create("adapter", adapter, options), create("norm policy", "frozen"), generator)


@pytest.mark.parametrize(
    ("adapter", "options", "beside", "share"),
    [
        ("parallel", {}, 645_216, 11.27),
        ("series", {}, 689_152, 12.02),
        ("low_rank", {"rank": 8}, 55_657, 1.13),
        ("grouped", {"groups": 8}, 80_736, 1.57),
        ("diagonal", {}, 3_616, 0.24),
        ("seeded", {"rank": 8}, 28_768, 0.67),
        ("lora", {"rank": 8}, 270_769, 4.83),
        ("norm_head", {}, 0, 0.18),
    ],
)
def test_sizes_on_resnet26(resnet26, adapter, options, beside, share):
    """With 7,744 norm and 2,570 head values the shares of 5,817,258 are as worked out.

    The 25 convolutions lead 3 to 32, then 32 to 64 once and 64 to 64 seven times, 64 to 128 once and 128 to 128
    seven times, 128 to 256 once and 256 to 256 seven times: 3,616 channels out in all, 3,363 in. Diagonal: 3,616.
    Seeded at rank 8, 3 at the stem: 3 * 32 + 8 * 3,584. Low rank: that and 3 * 3 + 8 * 3,360. Grouped: the stem's
    96 whole, the other 645,120 divided by 8. LoRA: 3 * (27 + 32) + 8 * (9 * 3,360 + 3,584).
    """
    model = model_of(resnet26, adapter, **options)
    assert num_values(model.start) == beside + 7_744 + 2_570
    assert round(100 * num_values(model.start) / FULL, 2) == share


def one_conv(out_channels=2, **options):
    """A network of one convolution from 2 channels, all of whose weights are 1, and a head."""
    conv = nn.utils.skip_init(nn.Conv2d, 2, out_channels, 3, padding=1, bias=False, **options)
    conv.weight.data.fill_(1.0)
    (site,) = find_sites(nn.Sequential(conv))
    return site


def test_grouped_by_hand():
    """Two blocks of 1x1 hold the diagonal of a 2x2 matrix: the centre taps become 1 + 2, 1, 1, 1 + 3."""
    adapter = create("adapter", "grouped", {"groups": 2})
    site = one_conv()
    weight, _ = adapter.branches.fold(
        site, site.module.weight.data, None, {"weight": torch.tensor([[2.0], [3.0]])}
    )
    assert weight[:, :, 1, 1].tolist() == [[3.0, 1.0], [1.0, 4.0]]
    assert weight[:, :, 0, 0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("channels", "out", "groups", "read"),
    [(2, 2, 1, [0, 1]), (2, 5, 1, [0, 1, 0, 1, 0]), (4, 2, 1, [0, 1]), (4, 8, 2, [0, 1, 0, 1, 2, 3, 2, 3])],
)
def test_diagonal_reads_its_own_channels_over_again(channels, out, groups, read):
    """Outputs beyond the inputs of their group begin again with its first."""
    conv = nn.utils.skip_init(nn.Conv2d, channels, out, 1, groups=groups)
    (site,) = find_sites(nn.Sequential(conv))
    assert read_channels(site).tolist() == read


def test_diagonal_by_hand():
    """Factors 2 and 3 go onto the diagonal of the centre."""
    site = one_conv()
    fold = create("adapter", "diagonal").branches.fold
    weight, _ = fold(site, site.module.weight.data, None, {"weight": torch.tensor([2.0, 3.0])})
    assert weight[:, :, 1, 1].tolist() == [[3.0, 1.0], [1.0, 4.0]]


def test_low_rank_by_hand():
    """B = (1, 2) over A = (3, 4) is the matrix ((3, 4), (6, 8)), doubled by the scaling."""
    fold = create("adapter", "low_rank", {"rank": 1, "sites": {"scaling": 2.0}}).branches.fold
    site = one_conv()
    branch = {"down": torch.tensor([[3.0, 4.0]]), "up": torch.tensor([[1.0], [2.0]])}
    weight, _ = fold(site, site.module.weight.data, None, branch)
    assert (weight - 1)[:, :, 1, 1].tolist() == [[6.0, 8.0], [12.0, 16.0]]


def test_series_by_hand():
    """With A = ((0, 1), (0, 0)) the first output adds the second: its kernel is 2 everywhere, its bias 3 + 5."""
    fold = create("adapter", "series").branches.fold
    site = one_conv()
    matrix = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    weight, bias = fold(site, site.module.weight.data, torch.tensor([3.0, 5.0]), {"weight": matrix})
    assert weight[0].unique().tolist() == [2.0]
    assert weight[1].unique().tolist() == [1.0]
    assert bias.tolist() == [8.0, 5.0]


def test_lora_by_hand():
    """A kernel of twos to one channel, and 3 and 4 up from it, add 6 and 8 to every tap."""
    fold = create("adapter", "lora", {"rank": 1}).branches.fold
    site = one_conv()
    branch = {"down": torch.full((1, 2, 3, 3), 2.0), "up": torch.tensor([[3.0], [4.0]])}
    weight, _ = fold(site, site.module.weight.data, None, branch)
    assert (weight[0].unique().tolist(), weight[1].unique().tolist()) == ([7.0], [9.0])


def test_the_fixed_matrix_has_rows_of_length_one_and_follows_from_the_seed():
    """Two parties draw the same signs, other seeds and sites draw others; it is not among what is trained."""
    one, same, other = (
        model_of(tiny_backbone(widths=(8, 8, 8, 8)), "seeded", seed, rank=4) for seed in (1, 1, 2)
    )
    fixed = [dict(model.module.named_buffers()) for model in (one, same, other)]
    names = [name for name in fixed[0] if name.endswith("adapter.down")]
    assert len(names) == len(one.sites)
    for name in names:
        assert torch.equal(fixed[0][name], fixed[1][name])
        torch.testing.assert_close(fixed[0][name].norm(dim=1), torch.ones(fixed[0][name].shape[0]))
        assert one.groups[name] is Group.ADAPTER
        assert name not in one.start
    assert not torch.equal(fixed[0][names[1]], fixed[2][names[1]])
    assert not torch.equal(fixed[0][names[1]], fixed[0][names[2]])
    assert one.digest == same.digest != other.digest
    assert one.backbone.digest == other.backbone.digest


def test_the_fixed_matrix_is_pinned():
    """The signs of one site and seed, so that no change of version gives a run's parties others."""
    model = model_of(tiny_backbone(), "seeded", 7, rank=2)
    signs = model.module.get_submodule("layer1.0.conv1.adapter").down.sign().int().tolist()
    assert signs == [[1, -1, 1, 1], [1, -1, -1, -1]]


def test_a_seeded_file_of_another_seed_is_refused(tmp_path):
    """The trained half of another seed would compute something else; the message names both seeds."""
    model, other = (model_of(tiny_backbone(), "seeded", seed, rank=2) for seed in (1, 2))
    save_adapter(model, model.start, tmp_path / "a.safetensors")
    with pytest.raises(AttachError, match=f"of seed {model.seed}, here they are of seed {other.seed}"):
        load_adapter(other, tmp_path / "a.safetensors")


def test_a_seeded_model_in_bf16_still_merges_with_its_own_matrix():
    """Casting the fixed matrix rounds what is computed with, not what is merged."""
    model = model_of(tiny_backbone(), "seeded", rank=2).to("cpu", torch.bfloat16)
    params = {name: tensor + 0.1 for name, tensor in model.start.items()}
    plain, exact = merge(model, params), model_of(tiny_backbone(), "seeded", rank=2)
    images = noise((3, 12, 12), 2)
    torch.testing.assert_close(plain(images), exact(expand(params, 1), images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("adapter", "head", "options"),
    [("seeded", "trained", {}), ("parallel", "frozen", {}), ("parallel", "low_rank", {"rank": 2})],
)
def test_a_file_of_a_model_in_bf16_is_one_of_the_model(adapter, head, options, tmp_path):
    """What is frozen is rounded where it computes, and is the same model: the digest stays, files go both ways."""
    half, whole = (
        attach(
            tiny_backbone(),
            create("adapter", adapter),
            create("norm policy", "frozen"),
            torch.Generator().manual_seed(0),
            create("head policy", head, options),
        )
        for _ in range(2)
    )
    half.to("cpu", torch.bfloat16)
    assert half.digest == whole.digest != whole.backbone.digest
    for one, other in ((half, whole), (whole, half)):
        save_adapter(one, one.start, tmp_path / "a.safetensors")
        assert list(load_adapter(other, tmp_path / "a.safetensors")) == list(other.start)
