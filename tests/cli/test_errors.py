"""What a user can get wrong ends in one line on standard error, the kind's exit code, and nothing on disk."""

from __future__ import annotations

import numpy as np
import pytest
from nodes import make_certificates, make_key
from tiny import tiny

from fedadapt.backbones.weights import save_weights
from fedadapt.experiment.build import build
from fedadapt.runs.store import FILE, RunStore


def one_line(ended, code, *words):
    """The command ended with `code` and one line on standard error with all of `words`."""
    assert ended.code == code, ended
    assert ended.err.startswith("fedadapt: "), ended
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err + ended.out
    assert all(word in ended.err for word in words), ended.err


@pytest.fixture
def refused(tmp_path, recipe, fedadapt):
    """Runs with settings that must be refused; no run directory may come of it."""

    def call(code, settings, *words):
        for command in (["plan", recipe], ["run", recipe, "--runs", tmp_path / "runs"]):
            one_line(fedadapt(*command, *(f"--set={setting}" for setting in settings)), code, *words)
        assert not (tmp_path / "runs").exists()

    return call


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.learning_rate=1", ["unknown key 'train.learning_rate'", "allowed: ", "lr"]),
        ("train.batchsize=1", ["unknown key 'train.batchsize'", "did you mean 'batch_size'?"]),
        ("train.lr=fast", ["'train.lr' is 'fast'"]),
        ("rounds=[1]", ["'rounds' is [1]"]),
        ("adapter=paralell", ["unknown adapter 'paralell'", "did you mean 'parallel'?"]),
        ("backbone.widht=2", ["unknown key 'widht'", "did you mean 'width'?"]),
        ("rounds", ["key=value"]),
    ],
)
def test_a_wrong_setting(refused, setting, words):
    """Unknown keys, wrong types and unknown names end with code 2."""
    refused(2, [setting], *words)


def test_a_run_file_that_is_not_there(tmp_path, fedadapt):
    """A missing run file ends with code 2."""
    one_line(fedadapt("run", tmp_path / "no.toml", "--runs", tmp_path / "runs"), 2, "no.toml")


def test_a_pretraining_that_cannot_be(tmp_path, fedadapt):
    """A device that is none, or a recipe that is no text, ends with code 2."""
    (tmp_path / "recipe.toml").write_text(
        'device = "gpu"\nsource = { name = "digits", size = 8 }\n', encoding="utf-8"
    )
    out = tmp_path / "out.safetensors"
    one_line(fedadapt("pretrain", tmp_path / "recipe.toml", out), 2, "device is 'gpu'", "use auto, cpu, cuda")
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe\x00name")
    one_line(fedadapt("pretrain", tmp_path / "recipe.toml", out), 2, "recipe.toml is not TOML")


def images(count, classes=3):
    """Arrays of a small image set."""
    draw = np.random.default_rng(0)
    return {
        "x_train": draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(count) % classes,
        "x_test": draw.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(6) % classes,
    }


def npz(path, **options):
    """The setting that takes the data from `path`."""
    more = "".join(f", {key} = {value}" for key, value in options.items())
    return f"data.source={{ name = 'npz', path = '{path}'{more} }}"


def test_data_that_is_not_there(tmp_path, refused):
    """A missing data file ends with code 3."""
    refused(3, [npz(tmp_path / "no.npz")], "no.npz")


@pytest.mark.parametrize("how", ["other", "cut", "changed"])
def test_data_that_is_corrupt(tmp_path, refused, how):
    """A data file of another kind, cut short, or with a changed byte ends with code 3."""
    file = tmp_path / "set.npz"
    np.savez(file, **images(30))
    content = file.read_bytes()
    middle = len(content) // 2
    broken = {
        "other": b"not a zip file",
        "cut": content[:middle],
        "changed": content[:3000] + bytes([content[3000] ^ 255]) + content[3001:],
    }
    file.write_bytes(broken[how])
    refused(3, [npz(file)], "set.npz")


def test_labels_out_of_range(tmp_path, refused):
    """A label that is no class ends with code 3 and says which labels there are."""
    file = tmp_path / "set.npz"
    np.savez(file, **images(30, classes=5), class_names=np.array(["a", "b", "c"]))
    refused(3, [npz(file)], "labels from 0 to 4", "3 classes")


def test_a_set_without_train_images(tmp_path, refused):
    """An image set without a train split ends with code 3 and says what there is."""
    file = tmp_path / "set.npz"
    arrays = images(30)
    np.savez(file, x_test=arrays["x_test"], y_test=arrays["y_test"])
    refused(3, [npz(file)], "train split", "x_train", "x_test")


def test_more_clients_than_samples(refused):
    """More clients than samples end with code 3."""
    refused(3, ["data.limit=20", "data.num_clients=21"], "20 samples", "21 clients")


def test_an_empty_client(refused):
    """A skew that leaves a client without samples ends with code 3."""
    refused(
        3, ["data.limit=20", "data.num_clients=20", "data.partition={name = 'dirichlet', alpha = 0.01}"], "20"
    )


def test_a_backbone_without_sites(refused):
    """An adapter that fits nowhere ends with code 5 and says which kernels there are."""
    refused(5, ["adapter.sites.kernel_sizes=[5]"], "no site", "3x3")


@pytest.mark.parametrize("weights", ["no.safetensors", "weights.pt"])
def test_weights_that_cannot_be_used(tmp_path, refused, weights):
    """A missing weight file, and one that could run code, end with code 4."""
    refused(4, [f"backbone.weights={tmp_path / weights}"], weights)


def test_weights_of_another_network(tmp_path, refused):
    """A weight file of another width ends with code 4."""
    file = tmp_path / "other.safetensors"
    save_weights(build(tiny("backbone.width=0.5")).backbone.module, file, {})
    refused(4, [f"backbone.weights={file}"], "other.safetensors", "shape")


def test_an_adapter_file_that_is_none(tmp_path, fedadapt):
    """``inspect`` of anything else ends with code 5."""
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    for name in ("text", "missing"):
        one_line(fedadapt("inspect", tmp_path / name), 5, name)


def test_a_run_that_exists(finished, recipe, fedadapt):
    """Starting a run of the same name ends with code 8 and says what to do; the old one stays."""
    before = (finished / FILE).read_bytes()
    one_line(
        fedadapt("run", recipe, "--runs", finished.parent), 8, "already holds a run", "--overwrite", "resume"
    )
    assert (finished / FILE).read_bytes() == before


def test_a_run_in_use(finished, recipe, fedadapt):
    """While a process has a run, another one that wants to write it ends with code 8; reading goes on."""
    with RunStore.open(finished):
        one_line(fedadapt("resume", finished), 8, "in use by process")
        one_line(fedadapt("run", recipe, "--runs", finished.parent, "--overwrite"), 8, "in use by process")
        assert fedadapt("compare", finished).code == 0


def test_a_run_that_is_not_there(tmp_path, fedadapt):
    """Every command that takes a run ends with code 8 if there is none, and makes nothing."""
    run, out = tmp_path / "none", tmp_path / "out"
    for command in (
        ["resume", run],
        ["report", run],
        ["compare", run],
        ["export", run, out],
        ["compare", run, "--json"],
    ):
        one_line(fedadapt(*command), 8, "there is no run")
    assert not list(tmp_path.iterdir())


def test_runs_where_nothing_can_be_made(tmp_path, recipe, fedadapt):
    """A file in the place of the runs folder ends with code 8."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    one_line(fedadapt("run", recipe, "--runs", tmp_path / "file"), 8, "file")


@pytest.mark.parametrize("how", ["cut", "changed", "empty", "other"])
def test_a_run_that_is_damaged(tmp_path, finished, fedadapt, how):
    """A run file that is cut, altered, empty or no database ends with code 8, and is left as it is."""
    file = finished / FILE
    with RunStore.read(finished) as store:
        value = next(iter(store.state()["model"].values())).numpy().tobytes()[-64:]
    content = file.read_bytes()
    place = content.rindex(value) if value in content else len(content) // 2
    broken = {
        "cut": content[: len(content) // 2],
        "changed": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "empty": b"",
        "other": b"not a database" * 500,
    }[how]
    file.write_bytes(broken)
    one_line(fedadapt("resume", finished), 8)
    one_line(fedadapt("export", finished, tmp_path / "out"), 8)
    assert not (tmp_path / "out").exists()
    assert file.read_bytes() == broken


def test_exports_that_cannot_be_written(tmp_path, finished, fedadapt):
    """A folder in the place of the file ends with code 8."""
    (tmp_path / "out").mkdir()
    for flags in ([], ["--format", "adapter"]):
        one_line(fedadapt("export", finished, tmp_path / "out", *flags), 8, "cannot write")
    assert not list((tmp_path / "out").iterdir())


def test_keys_of_sites_that_cannot_be(tmp_path, recipe, fedadapt):
    """A key that two sites would share, and a private one in place of the public one, end with code 2."""
    make_certificates(tmp_path)
    key, pair = (
        make_key(tmp_path / "key"),
        ["--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key"],
    )
    (tmp_path / "again.pub").write_text(
        f"{' '.join((tmp_path / 'key.pub').read_text().split()[:2])} another comment"
    )
    for second, words in (
        (tmp_path / "again.pub", ["--site 1 has the key of --site 0"]),
        (key, [f"{key} is not a public key"]),
    ):
        sites = [f"--site=0={key}.pub", f"--site=1={second}"]
        one_line(fedadapt("serve", recipe, "--runs", tmp_path / "runs", *pair, *sites), 2, *words)
    assert not (tmp_path / "runs").exists()
