"""Adapters of two matrices go to PEFT's layout and come back, and PEFT computes with them what we do."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from contracts.cases import jiggle, random_images, tiny_backbone, tiny_model, zoo_backbone
from safetensors.torch import load_file, save_file

from fedadapt.adapters import attach, load_peft, save_peft
from fedadapt.adapters.peft import CONFIG, TENSORS, _from_lora, _to_lora
from fedadapt.errors import AttachError
from fedadapt.params import expand
from fedadapt.registry import create

UNEVEN = {"rank": 3, "sites": {"scaling": 0.5, "sizes": {"layer2.*": 2, "layer1.0.conv2": 0}}}


def model_of(adapter="lora", backbone=None, **options):
    """A model on the tiny residual net, or on another one."""
    generator = torch.Generator().manual_seed(0)
    return attach(
        backbone or tiny_backbone(),
        create("adapter", adapter, options),
        create("norm policy", "frozen"),
        generator,
    )


@pytest.mark.parametrize("adapter", ["lora", "low_rank", "seeded"])
def test_peft_computes_what_we_do(adapter, tmp_path):
    """Its own loader puts the files onto the bare backbone, and the logits are ours."""
    peft = pytest.importorskip("peft", reason="needs PEFT")
    model = model_of(adapter, **UNEVEN)
    params = jiggle(model.start)
    save_peft(model, params, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model.backbone.module), tmp_path).eval()
    images = random_images(3)
    with torch.inference_mode():
        ours, theirs = model(expand(params, 1), images), loaded(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert float((ours - model.backbone.module(images)).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_peft_computes_what_we_do_in_a_transformer(name, tmp_path):
    """Whose last norm has a name that modules without tensors end in as well."""
    peft = pytest.importorskip("peft", reason="needs PEFT")
    options = {"model": name, "pretrained": False, "image_size": 32 if name.startswith("vit") else 224}
    model = model_of("lora", create("backbone", "timm", options)(3, torch.Generator().manual_seed(0)))
    params = jiggle(model.start, scale=0.02)
    save_peft(model, params, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model.backbone.module), tmp_path).eval()
    images = random_images(1, side=options["image_size"])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(expand(params, 1), images), rtol=1e-3, atol=1e-3)
    again = load_peft(model, tmp_path)
    assert all(torch.equal(again[tensor], value) for tensor, value in params.items())


@pytest.mark.parametrize("adapter", ["lora", "low_rank", "seeded"])
def test_what_was_written_comes_back(adapter, tmp_path):
    """Names and bits, norms and head among them; no half-written file stays."""
    model = model_of(adapter, **UNEVEN)
    params = jiggle(model.start)
    save_peft(model, params, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, TENSORS]
    loaded = load_peft(model, tmp_path)
    assert list(loaded) == list(params)
    for name, tensor in params.items():
        assert torch.equal(loaded[name], tensor), name


def test_a_model_in_bf16_writes_and_reads_its_own_first_matrix(tmp_path):
    """The one that follows from the seed, not what is left of it where the model computes."""
    whole, half = model_of("seeded", rank=2), model_of("seeded", rank=2).to("cpu", torch.bfloat16)
    save_peft(half, half.start, tmp_path / "half")
    save_peft(whole, whole.start, tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / TENSORS) for name in ("half", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for model in (whole, half):
        assert list(load_peft(model, tmp_path / "half")) == list(model.start)


def test_what_peft_writes_comes_to_us(tmp_path):
    """Its own LoRA on the bare backbone, another scale than ours, no norms or head: the logits are the same here."""
    peft = pytest.importorskip("peft", reason="needs PEFT")
    model = model_of("lora", rank=2, sites={"include": ["layer?.0.conv1"]})
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=[site.name for site in model.sites])
    theirs = peft.get_peft_model(copy.deepcopy(model.backbone.module), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)
    theirs.save_pretrained(tmp_path)
    images = random_images(3)
    with torch.inference_mode():
        ours = model(expand(load_peft(model, tmp_path), 1), images)
        torch.testing.assert_close(ours, theirs(images), rtol=1e-4, atol=1e-4)


def test_groups_are_blocks_of_one_kernel():
    """Two groups of three channels at rank 1: the first row reads channels 0 to 2 under the centre, the second 3 to 5."""
    options = {"include": ["3"], "kernel_sizes": (5,)}
    model = model_of("low_rank", zoo_backbone(), rank=1, sites=options)
    (site,) = model.sites
    down, up = torch.arange(1.0, 7.0).view(2, 3), torch.ones(6, 1)
    kernel, second = _to_lora(site, down, up)
    assert (kernel.shape, second.shape) == ((2, 6, 5, 5), (6, 1, 1, 1))
    assert kernel[:, :, 2, 2].tolist() == [[1, 2, 3, 0, 0, 0], [0, 0, 0, 4, 5, 6]]
    assert float(kernel.sum()) == 21
    assert torch.equal(_from_lora(site, kernel, down), down)


def test_names_that_peft_would_mix_up_are_refused(tmp_path):
    """It takes "1" for the end of "11" and "16" too, so the norms of a plain sequence cannot be named."""
    model = model_of("low_rank", zoo_backbone(), rank=1, sites={"include": ["12"]})
    with pytest.raises(AttachError, match=r"finds modules by the end of their names and would take '1\d'"):
        save_peft(model, model.start, tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: tiny_model("parallel"), "'parallel' is not a pair of matrices"),
        (lambda: tiny_model("bias"), "has no branches here, so it is no LoRA"),
        (lambda: tiny_model("norm_head"), "has no branches"),
        (
            lambda: model_of("lora", zoo_backbone(), rank=1, sites={"include": ["9"]}),
            "no dilation, the convolution at '9' has",
        ),
        (
            lambda: model_of("lora", zoo_backbone(), rank=1, sites={"include": ["6"], "kernel_sizes": [7]}),
            "pads with zeros, the convolution at '6' in mode 'reflect'",
        ),
    ],
)
def test_what_peft_cannot_express_is_refused(model, said, tmp_path):
    """With the reason, and nothing is written."""
    one = model()
    with pytest.raises(AttachError, match=said):
        save_peft(one, one.start, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "of type 'IA3'; only 'LORA'"),
        ({"use_dora": True}, "sets use_dora=True"),
        ({"bias": "all"}, "sets bias='all'"),
        ({"alpha_pattern": {"(": 1}}, "does not say what it is scaled by"),
        ({"rank_pattern": {}, "r": 0}, "does not say what it is scaled by"),
    ],
)
def test_other_variants_are_refused(changes, said, tmp_path):
    """What would compute something else here is named."""
    model = model_of("lora", rank=2)
    save_peft(model, model.start, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(AttachError, match=said):
        load_peft(model, tmp_path)


@pytest.mark.parametrize("adapter", ["lora", "seeded"])
def test_a_folder_in_another_type_is_read(adapter, tmp_path):
    """What the model has anyway, such as frozen statistics or a first matrix that follows from the seed, is compared as stored."""
    model = model_of(adapter, rank=2)
    save_peft(model, jiggle(model.start), tmp_path)
    whole = load_peft(model, tmp_path)
    save_file({k: t.bfloat16() for k, t in load_file(tmp_path / TENSORS).items()}, tmp_path / TENSORS)
    for name, tensor in load_peft(model, tmp_path).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["conv1.lora_B.weight", "fc.bias"])
def test_values_that_are_no_numbers_are_refused(name, tmp_path):
    """Of a pair, and of what PEFT saves whole; other types are taken in ours."""
    model = model_of("lora", rank=2)
    save_peft(model, model.start, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    tensors |= {key: tensor.bfloat16() for key, tensor in tensors.items() if "lora" in key or ".fc." in key}
    save_file(tensors, tmp_path / TENSORS)
    loaded = load_peft(model, tmp_path)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    tensors[f"base_model.model.{name}"].view(-1)[-1] = float("nan")
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(AttachError, match="holds infinite or NaN values, in"):
        load_peft(model, tmp_path)


def test_files_of_other_models_are_refused(tmp_path):
    """Other ranks, other sites, kernels that a pair under the centre has not, another seed, tensors nobody knows."""
    model = model_of("lora", rank=2)
    save_peft(model, jiggle(model.start), tmp_path)
    some = {"include": ["layer1.0.conv1"]}
    for other, said in (
        (model_of("lora", rank=1), "attach it with the file's rank"),
        (model_of("lora", rank=2, sites=some), "does not train"),
        (model_of("low_rank", rank=2), "uses more of its kernel"),
    ):
        with pytest.raises(AttachError, match=said):
            load_peft(other, tmp_path)
    few = model_of("lora", rank=2, sites=some)
    save_peft(few, few.start, tmp_path / "few")
    with pytest.raises(AttachError, match="no LoRA at 'conv1'"):
        load_peft(model, tmp_path / "few")
    with pytest.raises(AttachError, match="scaling is 0"):
        load_peft(model_of("lora", rank=2, sites={"scaling": 0.0}), tmp_path)
    drawn = model_of("low_rank", rank=2)
    save_peft(drawn, drawn.start, tmp_path / "drawn")
    with pytest.raises(AttachError, match="another first matrix than the one that follows from the seed"):
        load_peft(model_of("seeded", rank=2), tmp_path / "drawn")
    tensors = load_file(tmp_path / TENSORS)
    save_file(tensors | {"base_model.model.nobody": torch.zeros(1)}, tmp_path / TENSORS)
    with pytest.raises(AttachError, match="has 'nobody'"):
        load_peft(model, tmp_path)
    (tmp_path / TENSORS).write_bytes(b"")
    with pytest.raises(AttachError, match="no readable PEFT adapter"):
        load_peft(model, tmp_path)
    with pytest.raises(AttachError, match="no readable PEFT adapter"):
        load_peft(model, tmp_path / "nowhere")
