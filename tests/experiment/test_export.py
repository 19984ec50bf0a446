"""What is taken out of a run computes what the run measured."""

from __future__ import annotations

import sys
import zipfile

import pytest
import torch
from contracts.cases import jiggle
from safetensors.torch import load_file
from tiny import tiny

from fedadapt.adapters import load_adapter
from fedadapt.backbones.resnet import cifar_resnet
from fedadapt.data.augment import normalise
from fedadapt.errors import AttachError, RunError
from fedadapt.experiment import run
from fedadapt.experiment.build import build
from fedadapt.experiment.export import METADATA, WRITERS, Format, Trained, export
from fedadapt.experiment.inspection import inspect
from fedadapt.params import expand
from fedadapt.runs.store import RunStore


@pytest.mark.parametrize("adapter", ["parallel", "norm_head", "full"])
def test_the_merged_network_is_a_plain_one(tmp_path, adapter):
    """A stock network with the exported tensors, and nothing of fedadapt, is as accurate as the run was."""
    config = tiny("rounds=2", "train.lr=0.1", f"adapter={adapter}")
    path = run(config, tmp_path)
    export(path, tmp_path / "deep" / "merged.safetensors")
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
    export(path, file, Format.ADAPTER)
    with RunStore.read(path) as store:
        expected = store.state()["model"]
    loaded = load_adapter(build(tiny()).model, file)
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    with pytest.raises(AttachError, match="was trained on backbone 'resnet20'"):
        load_adapter(build(tiny("seed=1")).model, file)
    with pytest.raises(AttachError, match="is of adapter 'parallel' .* here it is 'head'"):
        load_adapter(build(tiny("adapter=head")).model, file)


OWN_MODELS = {
    "kept norms": ("norms=local",),
    "kept head": ("algorithm=fedper",),
    "second model": ("algorithm=apfl", "algorithm.alpha=0.5"),
}


@pytest.mark.parametrize("settings", OWN_MODELS.values(), ids=OWN_MODELS)
def test_the_model_of_a_client_is_what_it_was_measured_with(tmp_path, settings):
    """A stock network with a client's exported tensors is as accurate on its own samples as the run says."""
    config = tiny("rounds=2", "train.lr=0.05", "data.local_test_fraction=0.5", *settings)
    path = run(config, tmp_path)
    experiment = build(config)
    with RunStore.read(path) as store:
        accuracies = {record.client: record.accuracy for record in store.clients(2)}
    states = []
    for client in (0, 3):
        export(path, tmp_path / "own.safetensors", client=client)
        plain = cifar_resnet(20, width=0.25)
        plain.load_state_dict(load_file(tmp_path / "own.safetensors"), strict=False)
        own = experiment.dataset.train.take(experiment.clients.test[client])
        with torch.inference_mode():
            logits = plain.eval()(normalise(own.images, experiment.mean, experiment.std, torch.float32))
        accuracy = float((logits.argmax(1) == own.labels).float().mean())
        assert accuracy == pytest.approx(accuracies[client], abs=1.5 / len(own))
        states.append(torch.cat([t.flatten() for t in plain.state_dict().values()]))
        export(path, tmp_path / "adapter.safetensors", Format.ADAPTER, client)
        loaded = load_adapter(experiment.model, tmp_path / "adapter.safetensors")
        assert loaded.keys() == experiment.model.start.keys()
    assert not torch.equal(*states)


@pytest.mark.parametrize(
    ("settings", "client", "message"),
    [
        (
            ("norms=local",),
            None,
            "keep norm_affine and norm_statistics, so what they share is nobody's model; name the",
        ),
        (("norms=local",), 4, "client 4 of run .* is not from 0 to 3"),
        (("norms=local", "cohort=1"), "absent", "never took part"),
        ((), 0, "have no models of their own; leave --client out"),
    ],
)
def test_a_model_that_nobody_has_is_not_written(tmp_path, settings, client, message):
    """What there is none of is said in one line, and no file is left."""
    path = run(tiny("rounds=1", *settings), tmp_path)
    if client == "absent":
        with RunStore.read(path) as store:
            client = min(set(range(4)) - {record.client for record in store.clients()})
    for form in (Format.SAFETENSORS, Format.ADAPTER):
        with pytest.raises(RunError, match=message) as caught:
            export(path, tmp_path / "out.safetensors", form, client)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_who_is_at_work_for_the_first_time_has_no_model_yet(tmp_path):
    """What a client keeps of a late update is of a model that does not count, or not yet."""
    path = run(
        tiny("algorithm={name='chain', of=['fedper', {name='fedbuff', buffer=1}]}", "rounds=1"), tmp_path
    )
    with RunStore.read(path) as store:
        heard = {record.client for record in store.clients()}
        late = [c for c in range(4) if c not in heard and store.memory(c)]
    assert late
    with pytest.raises(RunError, match="never took part"):
        export(path, tmp_path / "out.safetensors", client=late[0])


@pytest.fixture(scope="module")
def trained():
    """A run of the tiny network with low-rank adapters, as if it had trained."""
    experiment = build(tiny("adapter={name='lora', rank=2}"))
    return Trained(experiment, jiggle(experiment.model.start, scale=0.05), 3)


def expected_logits(trained, count):
    """Images of the run's size, and what the adapted model says of them."""
    images = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        return images, trained.experiment.model(expand(trained.params, 1), images)


def test_a_torch_program_computes_the_same(trained, tmp_path):
    """Loaded without any code of ours, for one image and for five; it says which run it is of."""
    WRITERS[Format.TORCH](trained, tmp_path / "network.pt2")
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 5):
        images, logits = expected_logits(trained, count)
        torch.testing.assert_close(program(images), logits, rtol=1e-4, atol=1e-4)
    told = inspect(tmp_path / "network.pt2")
    assert (told["kind"], told["run"], told["round"]) == ("torch program", "tiny", 3)
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt2"]


def test_an_onnx_graph_computes_the_same(trained, tmp_path):
    """In onnxruntime, for one image and for five; it says which run it is of."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs fedadapt[onnx]")
    pytest.importorskip("onnxscript", reason="needs fedadapt[onnx]")
    WRITERS[Format.ONNX](trained, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images, logits = expected_logits(trained, count)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-4)
    told = inspect(tmp_path / "network.onnx")
    assert (told["kind"], told["run"], told["image"]) == ("onnx graph", "tiny", [3, 12, 12])
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    nameless = (tmp_path / "network.onnx").rename(tmp_path / "network")
    assert inspect(nameless) == told


def test_without_its_packages_onnx_is_refused(trained, tmp_path, monkeypatch):
    """The line says what to install, for writing and for reading."""
    for name in ("onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AttachError, match=r"pip install 'fedadapt\[onnx\]'"):
        WRITERS[Format.ONNX](trained, tmp_path / "network.onnx")
    (tmp_path / "network.onnx").write_bytes(b"graph")
    with pytest.raises(AttachError, match=r"pip install 'fedadapt\[onnx\]'"):
        inspect(tmp_path / "network.onnx")


@pytest.mark.parametrize("at", [b"PK\x01\x02", b"{}{}", "ä".encode()])
def test_a_damaged_program_is_refused_in_one_line(tmp_path, at):
    """Whether its directory is damaged, or a name in it, or what it holds."""
    path = tmp_path / "network.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/models/ä", "hello" * 100)
        archive.writestr(f"a/extra/{METADATA}", "{}" * 50)
    path.write_bytes(path.read_bytes().replace(at, b"\xff" * len(at)))
    with pytest.raises(AttachError, match="a damaged one") as error:
        inspect(path)
    assert "\n" not in str(error.value)


def test_every_format_has_a_writer_and_is_recognised(trained, tmp_path):
    """Files say what they are by their content, whatever they are called."""
    assert set(WRITERS) == set(Format)
    for form, kind in (
        (Format.SAFETENSORS, "network"),
        (Format.ADAPTER, "adapter"),
        (Format.PEFT, "peft adapter"),
    ):
        WRITERS[form](trained, tmp_path / form)
        assert inspect(tmp_path / form)["kind"] == kind
    told = inspect(tmp_path / Format.SAFETENSORS)
    assert told["class_names"] == list(trained.experiment.dataset.class_names)
    assert told["values"] >= trained.experiment.backbone.num_parameters


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip", None, "holds no program"),
        ("a.onnx", b"\xff\xff", "no readable ONNX graph"),
        ("a", b"text", "no adapter, network, program"),
        ("missing", None, "no adapter, network, program"),
    ],
)
def test_what_is_none_of_ours_is_refused(tmp_path, name, content, said):
    """An archive, a damaged graph, a text, nothing; a damaged note in an archive."""
    path = tmp_path / name
    if name.endswith(".onnx"):
        pytest.importorskip("onnx", reason="needs fedadapt[onnx]")
    if content is not None:
        path.write_bytes(content)
    elif name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("photo.jpg", b"")
    with pytest.raises(AttachError, match=said):
        inspect(path)
    with zipfile.ZipFile(tmp_path / "noted.zip", "w") as archive:
        archive.writestr(f"archive/extra/{METADATA}", b"{")
    with pytest.raises(AttachError, match="says of itself is damaged"):
        inspect(tmp_path / "noted.zip")


def test_what_a_graph_cannot_hold_is_refused_in_one_line(tmp_path, monkeypatch):
    """Whatever torch says of it; nothing is left beside the run."""
    path = run(tiny("rounds=1"), tmp_path)
    before = sorted(tmp_path.iterdir())

    def refuse(*arguments, **options):
        raise RuntimeError("branches on\nits input")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(
        AttachError,
        match="'torch' cannot hold this network .RuntimeError: branches on its input.; export another",
    ):
        export(path, tmp_path / "network.pt2", Format.TORCH)
    assert sorted(tmp_path.iterdir()) == before


def test_a_graph_that_computes_something_else_is_not_left(trained, tmp_path, monkeypatch):
    """It is found out when it is written already, and the old file stays."""
    pytest.importorskip("onnxruntime", reason="needs fedadapt[onnx]")
    pytest.importorskip("onnxscript", reason="needs fedadapt[onnx]")
    monkeypatch.setattr("fedadapt.experiment.export.TOLERANCE", -1.0)
    (tmp_path / "network.onnx").write_bytes(b"old")
    with pytest.raises(AttachError, match="differs from the network"):
        WRITERS[Format.ONNX](trained, tmp_path / "network.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("network.onnx", b"old")]


@pytest.mark.parametrize("form", [Format.SAFETENSORS, Format.ADAPTER, Format.TORCH])
def test_a_place_that_cannot_be_written_is_named(tmp_path, form):
    """A folder in the file's place, or a file in the folder's, is an error in one line and leaves nothing."""
    path = run(tiny("rounds=1"), tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    for out in (tmp_path / "folder", tmp_path / "file" / "out.safetensors"):
        with pytest.raises(RunError, match="cannot write") as caught:
            export(path, out, form)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
