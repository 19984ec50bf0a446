"""Run files and settings say what they mean, or are refused in one line."""

from __future__ import annotations

import json

import pytest
from tiny import TOML, tiny

from fedadapt.errors import ConfigError, UnknownName
from fedadapt.experiment import load_config, run
from fedadapt.experiment.build import build
from fedadapt.experiment.config import RunConfig, apply_setting, make_config
from fedadapt.federation.frame import Kind
from fedadapt.params import Group
from fedadapt.registry import Choice
from fedadapt.runs.store import RunStore

EVERY_SECTION = """
name = "all"
seed = 5
rounds = 7
cohort = 2
norms = { name = "local" }
algorithm = { name = "fedavg" }
codec = { name = "float32" }

[backbone]
name = "resnet32"
width = 0.5

[adapter]
name = "parallel"
init = "rebuffi"

[data]
num_clients = 3
limit = 100
validation_fraction = 0.1
local_test_fraction = 0.2
source = { name = "digits", size = 16 }
partition = { name = "dirichlet", alpha = 0.3 }
augment = { pad = 2, flip = false }

[train]
optimizer = "adamw"
lr = 0.001
betas = [0.8, 0.99]
epochs = 2
batch_size = 8
device = "cpu"

[evaluate]
every = 3

[engine]
chunk = 2
"""


def test_a_name_alone_is_a_choice(tmp_path):
    """What has no option to set is named in short, in a run file and from Python, and may be given one on top."""
    path = tmp_path / "short.toml"
    path.write_text(
        'norms = "local"\nadapter = "low_rank"\ncodec = "int4 > zstd"\ndata.source = "digits"', "utf-8"
    )
    config = load_config(path, ["adapter.rank=2", "engine=local"])
    assert config.adapter.model_dump() == {"name": "low_rank", "rank": 2}
    assert (config.codec.name, config.data.source.name) == ("int4 > zstd", "digits")
    assert make_config({"name": "x", "norms": "local"}).norms == config.norms == Choice(name="local")


@pytest.fixture
def recipe(tmp_path):
    """The tiny run file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def test_every_section_is_read(tmp_path):
    """Each section of a run file arrives in the configuration, options of named things beside their name."""
    path = tmp_path / "file.toml"
    path.write_text(EVERY_SECTION, encoding="utf-8")
    config = load_config(path)
    assert (config.name, config.seed, config.rounds, config.cohort) == ("all", 5, 7, 2)
    assert (config.norms.name, config.algorithm.name, config.codec.name) == ("local", "fedavg", "float32")
    assert config.backbone.model_dump() == {"name": "resnet32", "width": 0.5}
    assert config.adapter.model_dump() == {"name": "parallel", "init": "rebuffi"}
    assert config.data.source.model_dump() == {"name": "digits", "size": 16}
    assert config.data.partition.model_dump() == {"name": "dirichlet", "alpha": 0.3}
    assert (config.data.num_clients, config.data.limit) == (3, 100)
    assert (config.data.validation_fraction, config.data.local_test_fraction) == (0.1, 0.2)
    assert (config.data.augment.pad, config.data.augment.flip) == (2, False)
    assert (config.train.optimizer, config.train.betas, config.train.epochs) == ("adamw", (0.8, 0.99), 2)
    assert (config.evaluate.every, config.engine.chunk) == (3, 2)


def test_a_run_is_called_after_its_file(recipe):
    """Without a name of its own a run has the stem of its file."""
    assert load_config(recipe).name == "tiny"
    assert load_config(recipe, ["name=other"]).name == "other"


def test_a_file_that_says_nothing_is_a_whole_run(tmp_path):
    """Every key has a default."""
    path = tmp_path / "empty.toml"
    path.write_text("", encoding="utf-8")
    assert load_config(path) == RunConfig(name="empty")


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("rounds=9", None, "rounds", 9),
        ("train.lr=0.5", "train", "lr", 0.5),
        ("train.lr=1e-3", "train", "lr", 1e-3),
        ("train.schedule=cosine", "train", "schedule", "cosine"),
        ('train.schedule="cosine"', "train", "schedule", "cosine"),
        ("train.betas=[0.5, 0.6]", "train", "betas", (0.5, 0.6)),
        ("engine.chunk=3", "engine", "chunk", 3),
    ],
)
def test_settings_take_numbers_and_text(recipe, setting, section, key, value):
    """A setting's value is TOML; what is not TOML is text."""
    config = load_config(recipe, [setting])
    place = config if section is None else getattr(config, section)
    assert getattr(place, key) == value


def test_settings_reach_into_options_and_choose_by_name(recipe):
    """Options nest with dots; naming another choice drops the options of the old one."""
    config = load_config(
        recipe,
        [
            "data.augment.flip=true",
            "data.source.size=10",
            "norms=local",
            "backbone=resnet32",
            "backbone.width=2",
        ],
    )
    assert config.data.augment.flip
    assert config.data.source.model_dump() == {"name": "digits", "size": 10}
    assert config.norms.model_dump() == {"name": "local"}
    assert config.backbone.model_dump() == {"name": "resnet32", "width": 2}
    table = load_config(recipe, ['data.partition={name = "dirichlet", alpha = 0.1}'])
    assert table.data.partition.model_dump() == {"name": "dirichlet", "alpha": 0.1}


def test_a_codec_is_a_chain_with_exceptions(recipe, tmp_path):
    """The codec section reads the same from a file and from settings, and makes the wire that it says."""
    path = tmp_path / "file.toml"
    path.write_text(
        TOML
        + """
[codec]
name = "rotate > int4(block=64) > zstd"
download = "int8"
error_feedback = true

[codec.groups]
head = "int8"
norm_affine = "float16"
""",
        encoding="utf-8",
    )
    settings = (
        "codec=rotate > int4(block=64) > zstd",
        "codec.download=int8",
        "codec.error_feedback=true",
        "codec.groups.head=int8",
        "codec.groups.norm_affine=float16",
    )
    config = load_config(path)
    assert config.codec == load_config(recipe, settings).codec
    wire = build(config).wire
    named = {group: wire.codec_of(Kind.UPLOAD, group).name.split("(")[0] for group in wire.plan.groups()}
    assert named == {Group.ADAPTER: "rotate", Group.NORM_AFFINE: "float16", Group.HEAD: "int8"}
    assert {wire.codec_of(Kind.DOWNLOAD, group).name.split("(")[0] for group in wire.plan.groups()} == {
        "int8"
    }
    assert (wire.delta, wire.error_feedback) == (True, True)


def test_running_statistics_travel_as_they_are(recipe):
    """Unless they are given a codec by name; and in downloads that have a codec of their own whatever uploads have."""
    for settings, up, down in (
        (("codec=int8",), "float32", "float32"),
        (("codec=int8", "codec.groups.norm_statistics=int8"), "int8", "int8"),
        (("codec=int8", "codec.groups.norm_statistics=int8", "codec.download=float32"), "int8", "float32"),
    ):
        wire = build(load_config(recipe, ("norms=averaged", *settings))).wire
        found = [
            wire.codec_of(kind, Group.NORM_STATISTICS).name.split("(")[0]
            for kind in (Kind.UPLOAD, Kind.DOWNLOAD)
        ]
        assert found == [up, down]


def test_lossless_downloads_are_whole_unless_asked(recipe):
    """Steps are for lossy downloads; `codec.delta` says otherwise either way. One name may have options beside it."""
    for settings, delta in (
        ((), False),
        (("codec=zstd",), False),
        (("codec.delta=true",), True),
        (("codec=int4", "codec.block=64"), True),
        (("codec=int4", "codec.download=float32"), False),
        (("codec=rotate > int2",), True),
        (("codec=int4", "codec.delta=false"), False),
    ):
        assert build(load_config(recipe, settings)).wire.delta is delta


def test_the_last_setting_wins(recipe):
    """Settings are applied in order."""
    assert load_config(recipe, ["rounds=4", "rounds=5"]).rounds == 5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.lrr=1", ["unknown key 'train.lrr'", "did you mean 'lr'?", "batch_size"]),
        ("round=1", ["unknown key 'round'", "did you mean 'rounds'?", "seed"]),
        ("data.augment.flipp=true", ["unknown key 'data.augment.flipp'", "did you mean 'flip'?", "pad"]),
        ("train.lr=fast", ["'train.lr' is 'fast'", "number"]),
        ("train.lr=-1", ["'train.lr' is -1", "greater than 0"]),
        ("rounds=0", ["'rounds' is 0"]),
        ("codec.groups.heads=int8", ["'codec.groups.heads", "'heads'", "'head'"]),
        ("rounds=2.5", ["'rounds' is 2.5", "integer"]),
        ("train.optimizer=adam", ["'train.optimizer' is 'adam'", "'sgd' or 'adamw'"]),
        ("engine=5", ["'engine' is 5"]),
        ("rounds.more=1", ["'rounds' is a value, not a section"]),
        ("rounds", ["key=value", "--set train.lr=0.1"]),
        ("=3", ["key=value"]),
        ("name=..", ["'name' is '..'"]),
        ("name=a/b", ["'name' is 'a/b'"]),
        ("backbone={width = 2}", ["'backbone.name' is required"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(recipe, setting, words):
    """The message names the key, the value, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, [setting])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone=resnt56", ["unknown backbone 'resnt56'", "did you mean 'resnet56'?"]),
        ("adapter=paralel", ["unknown adapter 'paralel'", "did you mean 'parallel'?", "norm_head"]),
        ("norms=frozn", ["unknown norm policy 'frozn'", "did you mean 'frozen'?"]),
        ("data.source=digit", ["unknown source 'digit'", "did you mean 'digits'?"]),
        ("data.partition=dirchlet", ["unknown partition 'dirchlet'", "did you mean 'dirichlet'?"]),
        ("algorithm=fedag", ["unknown algorithm 'fedag'", "did you mean 'fedavg'?"]),
        ("codec=float3", ["unknown codec 'float3'", "did you mean 'float32'?"]),
        ("codec=rotate > int5", ["unknown codec 'int5'", "did you mean 'int"]),
        ("codec.groups.head=int88", ["unknown codec 'int88'", "did you mean 'int8'?"]),
    ],
)
def test_an_unknown_name_brings_up_the_closest(setting, words):
    """A misspelt name is answered with the closest one and the known ones."""
    with pytest.raises(UnknownName) as caught:
        build(tiny(setting))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.wide=2", ["backbone 'resnet20'", "unknown key 'wide'", "width"]),
        ("adapter={name = 'parallel', init = 'ones'}", ["adapter 'parallel'", "'init' is 'ones'"]),
        ("adapter={name = 'full', init = 'zero'}", ["adapter 'full'", "unknown key 'init'", "none"]),
        ("data.source.size=4", ["source 'digits'", "'size' is 4"]),
        ("data.source=npz", ["source 'npz'", "'path' is required"]),
        ("codec.block=64", ["codec 'float32'", "unknown key 'block'"]),
        ("codec={name = 'int4', blok = 64}", ["codec 'int4'", "unknown key 'blok'", "did you mean 'block'?"]),
        ("codec={name = 'rotate > int4', block = 64}", ["several links", "in parentheses"]),
        ("codec=int1", ["codec.delta feeds back", "int1", "rounding=nearest", "rotation"]),
        (
            "codec={name = 'randomk', download = 'float32', error_feedback = true}",
            ["codec.error_feedback feeds back", "randomk", "unbiased=false"],
        ),
        # A message that is lost in half comes back twice as large: what is lost is never less.
        (
            "codec={name = 'randomk(fraction=0.5)', download = 'float32', error_feedback = true}",
            ["codec.error_feedback feeds back", "randomk", "unbiased=false"],
        ),
        # Two coarse factors make a product that is further off than nothing.
        ("codec=lowrank(rank=16) > rotate > int2", ["codec.delta feeds back", "lowrank"]),
        ("codec.error_feedback=true", ["'float32' loses nothing", "lossy codec"]),
        ("train.device=warp", ["train.device", "'warp'", "cuda:N"]),
        ("seed=9223372036854775808", ["seed", "2**63 - 1"]),
    ],
)
def test_wrong_options_are_refused_when_the_thing_is_made(setting, words):
    """Options of named things are checked against the thing."""
    with pytest.raises(ConfigError) as caught:
        build(tiny(setting))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"rounds = ", "not TOML"), (b"\xff\xfe", "not TOML"), (b"rounds = 1\nrounds = 2", "not TOML")],
)
def test_what_is_not_toml_is_refused(tmp_path, content, words):
    """A file that TOML cannot read is named."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert "broken.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    """A missing file and a folder are named with the reason."""
    with pytest.raises(ConfigError, match="cannot read run file"):
        load_config(tmp_path / name)


def test_a_refused_setting_leaves_values_alone():
    """A value is not turned into a section by a setting below it."""
    document = {"rounds": 3}
    with pytest.raises(ConfigError):
        apply_setting(document, "rounds.more=1", RunConfig)
    assert document == {"rounds": 3}


def test_the_manifest_holds_the_whole_configuration(tmp_path):
    """A configuration comes back equal from the manifest of its run, through JSON."""
    config = tiny(
        "rounds=1",
        "adapter={name = 'parallel', init = 'rebuffi'}",
        "data.partition=dirichlet",
        "train.betas=[0.5, 0.6]",
    )
    with RunStore.read(run(config, tmp_path)) as store:
        again = make_config(json.loads(json.dumps(store.manifest["config"])))
    assert again == config
    assert again.adapter.model_dump() == {"name": "parallel", "init": "rebuffi"}
