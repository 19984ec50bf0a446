"""A site answers the same twice, forgets what did not count, and says in one line what does not fit."""

from __future__ import annotations

import hashlib
import re
import resource
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny

from fedadapt.backbones.rounding import Rounding
from fedadapt.backbones.weights import save_weights
from fedadapt.engines.flower.carry import ROUND, Answer, Ask
from fedadapt.engines.flower.desk import SiteDesk
from fedadapt.engines.flower.pipe import Parcel
from fedadapt.errors import ConfigError, DataError, RunError
from fedadapt.experiment.build import build
from fedadapt.experiment.export import export
from fedadapt.experiment.federated import WEIGHTS, _terms, begin, lead
from fedadapt.experiment.run import Watcher, rebuild, run
from fedadapt.experiment.site import FederationSite, describe_site, load_site
from fedadapt.federation.frame import Kind
from fedadapt.federation.handshake import misfit
from fedadapt.federation.messages import EVERYONE, Request
from fedadapt.federation.round import play
from fedadapt.federation.round_zero import play_warm_start
from fedadapt.runs.log import LOG
from fedadapt.runs.records import Direction
from fedadapt.runs.results import RunRecord
from fedadapt.runs.store import RunStore

SITE = 'share = true\n[source]\nname = "digits"\nsize = 12\n'
SETTINGS = ("norms=local", "train.lr=0.05")


@pytest.fixture
def server(tmp_path):
    """Terms, requests and the experiment of a server."""
    return Server(tmp_path / "runs")


class Server:
    """What a site hears from."""

    def __init__(self, folder, *settings):
        self.path = begin(tiny(*SETTINGS, *settings), folder)
        with RunStore.open(self.path) as store:
            self.experiment = rebuild(store)
            pack = self.experiment.config.federation.backbone_as.pack
            save_weights(self.experiment.backbone.module, self.path / WEIGHTS, {}, pack)
            self.terms = _terms(self.experiment, store, self.path)

    def request(self, round=1, client=1, scale=1.0):
        """A download of round 1's model, or of one that is scaled."""
        state = self.experiment.first_state()
        model = {name: tensor * scale for name, tensor in state["model"].items()}
        frame = self.experiment.wire.write(Kind.DOWNLOAD, round, EVERYONE, {"model": model}, ())
        return Request(round, client, frame)


def site(folder, text=SITE, **options):
    """A site in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return FederationSite(folder / "site.toml", **options)


def memories(folder):
    """Rounds whose memory is kept."""
    return sorted(int(file.name.split("-")[1]) for file in folder.glob("fedadapt-site/*/memory-*"))


def test_a_site_that_fits_takes_part(server, tmp_path):
    """It shakes hands, answers, and keeps what it must; a request it had before gets the same bytes."""
    here = site(tmp_path / "here")
    fit = here.greet(server.terms, 1)
    assert misfit(server.terms, fit) == ""
    assert fit.num_examples == len(build(tiny(*SETTINGS)).clients.train[1])
    first = here.answer(server.terms.run, server.request(), 0)
    again = site(tmp_path / "here").answer(server.terms.run, server.request(), 0)
    assert first.frame
    assert first == again
    assert memories(tmp_path / "here") == [1]


@pytest.mark.parametrize("first", ["greet", "take"])
def test_what_a_site_keeps_is_its_users_alone(server, tmp_path, first):
    """Others on its machine may not even look into its folder."""
    here = site(tmp_path / "here")
    if first == "greet":
        here.greet(server.terms, 1)
    else:
        here.take(server.terms.backbone, 0, 2, b"x")
    assert stat.S_IMODE((tmp_path / "here" / "fedadapt-site").stat().st_mode) == 0o700


class Seen(Watcher):
    """Notes the state after every round."""

    def __init__(self):
        self.states = {}

    def committed(self, record):
        """A round is on disk."""
        self.states[record.round] = record.state


class Sites:
    """An engine whose sites are objects."""

    cpu_s = 0.0

    def __init__(self, folder, mandate, text=SITE):
        self.sites = [site(folder / str(client), text) for client in range(4)]
        self.terms, self.accepted = mandate.terms, mandate.accepted

    def exchange(self, requests):
        """Every site is asked as if it had just come."""
        for request in requests:
            assert not misfit(self.terms, self.sites[request.client].greet(self.terms, request.client))
        last = [self.accepted(r.client) if r.accepted is None else r.accepted for r in requests]
        return [
            self.sites[r.client].answer(self.terms.run, r, n) for r, n in zip(requests, last, strict=True)
        ]


def test_what_sites_have_trained_is_taken_home(tmp_path):
    """The exported network is that of the same recipe in simulation."""
    settings = ("rounds=2", "train.lr=0.05")
    path = begin(tiny(*settings), tmp_path / "runs")
    lead(path, lambda mandate: Sites(tmp_path, mandate))
    assert begin(tiny(*settings), tmp_path / "runs") == path
    export(path, tmp_path / "ours.safetensors")
    export(run(tiny(*settings), tmp_path / "simulated"), tmp_path / "theirs.safetensors")
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_site_takes_its_own_model_home(tmp_path, codec):
    """The federation's tensors after the last round, whole or as a step, and its own norms as it last trained them."""
    path = begin(tiny(*SETTINGS, "rounds=2", f"codec={codec}"), tmp_path / "runs")
    sites = []
    lead(path, lambda mandate: sites.append(Sites(tmp_path, mandate)) or sites[0])
    alone = run(tiny(*SETTINGS, "rounds=2", f"codec={codec}"), tmp_path / "alone", watcher=(seen := Seen()))
    assert path.name == alone.name
    trained = FederationSite(tmp_path / "1" / "site.toml").trained()
    assert (trained.round, trained.client, trained.metadata()["run"]) == (2, 1, "tiny")
    with RunStore.read(alone) as store:
        expected = seen.states[2]["model"] | store.memory(1)["kept"]
    assert expected.keys() == trained.params.keys()
    for name, tensor in trained.params.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-3 if codec == "int8" else 1e-5)
    with RunStore.read(path) as store:
        assert not [name for one in store.rounds() for name in one.metrics if name.startswith("client_")]
    export(tmp_path / "1" / "site.toml", tmp_path / "own.safetensors")
    assert load_file(tmp_path / "own.safetensors").keys() <= trained.merged().state_dict().keys()
    with pytest.raises(RunError, match="a site has one model; leave --client out"):
        export(tmp_path / "1" / "site.toml", tmp_path / "own.safetensors", client=1)
    with pytest.raises(RunError, match="is what is exported from; name another"):
        export(tmp_path / "1" / "site.toml", tmp_path / "1" / "site.toml")
    for client in (None, 1):
        with pytest.raises(RunError, match="each .*writes its own.*: fedadapt export SITE_FILE FILE"):
            export(path, tmp_path / "none.safetensors", client=client)


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("norms", ["frozen", "local"])
def test_sites_measure_what_a_simulation_does(tmp_path, norms, codec):
    """The same accuracy of the same clients after the same rounds; and what is sent for it is in the ledger."""
    settings = (
        "cohort=3",
        f"norms={norms}",
        f"codec={codec}",
        "rounds=3",
        "evaluate.every=2",
        "train.lr=0.05",
    )
    settings = (*settings, "data.local_test_fraction=0.3")
    path = begin(tiny(*settings), tmp_path / "runs")
    lead(path, lambda mandate: Sites(tmp_path, mandate))
    alone = run(tiny(*settings), tmp_path / "alone")
    with RunStore.read(path) as ours, RunStore.read(alone) as theirs:
        for one, other in zip(ours.clients(), theirs.clients(), strict=True):
            assert replace(one, loss=0.0) == replace(other, loss=0.0)
        measured = {c.round for c in ours.clients() if c.accuracy is not None}
        assert measured == {2, 3}
        for one, other in zip(ours.rounds(), theirs.rounds(), strict=True):
            assert one.metrics.keys() == other.metrics.keys()
            assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-4)
        moved = [Counter((e.round, e.direction) for e in store.ledger()) for store in (ours, theirs)]
    answers = moved[0] - moved[1]
    assert answers.keys() == {(n, way) for n in (2, 3) for way in Direction}
    assert answers[3, Direction.UPLOAD] == 4
    assert answers[2, Direction.UPLOAD] == 3


ELSEWHERE = "data.source={name='elsewhere', size=12, class_names=['0','1','2','3','4','5','6','7','8','9'], mean=[0.3,0.3,0.3], std=[0.4,0.4,0.4]}"


@pytest.mark.parametrize("shared", [True, False])
def test_a_server_without_samples_leads(tmp_path, shared):
    """Classes and shape are enough for it. Sites measure, each on its own test set and on what the recipe holds out."""
    path = begin(tiny(ELSEWHERE, "data.local_test_fraction=0.3", "rounds=2"), tmp_path / "runs")
    text = SITE if shared else SITE.replace("share = true\n", "")
    seen = []

    def connect(mandate):
        seen.append(Sites(tmp_path, mandate, text))
        return seen[0]

    lead(path, connect)
    with RunStore.read(path) as store:
        (first, *rounds), clients = store.rounds(), store.clients()
        record = RunRecord(store.manifest, store.rounds(), clients, [])
    assert first.metrics == {}
    assert all("accuracy" not in one.metrics and "client_accuracy_mean" in one.metrics for one in rounds)
    assert record.accuracy == rounds[-1].metrics["client_accuracy_mean"]
    assert all(client.accuracy is not None for client in clients)
    log = (path / LOG).read_text(encoding="utf-8")
    assert re.search(r"round 2 of 2: 4 of 4 clients, \d+\.\d\d % in the mean of 4 sites, ", log)
    assert re.search(r"round 2: at the sites: client 0 \d+\.\d\d %, client 1 ", log)
    own = seen[0].sites[1]._built[2]
    dataset = seen[0].sites[1].load()
    assert len(own.train) + len(own.test) == (30 if shared else len(dataset.train) + len(dataset.test))
    export(path, tmp_path / "model.safetensors")
    assert seen[0].sites[1].trained().round == 2


def test_nothing_is_simulated_without_samples(tmp_path):
    """One line says what to do, and nothing is begun."""
    with pytest.raises(ConfigError, match="'elsewhere', which holds no samples; name one that does"):
        run(tiny(ELSEWHERE), tmp_path)
    with pytest.raises(
        ConfigError, match=r"validation_fraction is 0.1, but source 'elsewhere' holds no samples"
    ):
        begin(tiny(ELSEWHERE, "data.validation_fraction=0.1"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_site_writes_no_model_but_its_own(server, tmp_path):
    """Neither that of another which worked in its folder, nor one whose kept tensors are lost."""
    here = site(tmp_path / "here")
    here.greet(server.terms, 1)
    here.answer(server.terms.run, server.request(), 0)
    assert here.trained().client == 1
    with pytest.raises(RunError, match="is client 2, but client 1 answered last"):
        site(tmp_path / "here", "client = 2\n" + SITE).trained()
    (kept,) = (tmp_path / "here").glob("fedadapt-site/*/memory-1")
    kept.unlink()
    with pytest.raises(RunError, match="is lost from .*; restore the whole folder"):
        here.trained()


def test_a_site_that_was_never_asked_has_no_model(server, tmp_path):
    """Neither before it has joined, nor before the first round."""
    here = site(tmp_path / "here")
    with pytest.raises(RunError, match="answered no round yet"):
        here.trained()
    here.greet(server.terms, 1)
    with pytest.raises(RunError, match="answered no round yet"):
        here.trained()


def test_a_federation_goes_on_after_a_key_was_added(tmp_path, monkeypatch):
    """What an older version wrote down is read with today's defaults, as a simulation's is."""
    path = begin(tiny(), tmp_path)
    manifest = RunStore.manifest.fget

    def older(store):
        found = manifest(store)
        found["config"]["federation"].pop("max_examples")
        return found

    monkeypatch.setattr(RunStore, "manifest", property(older))
    assert begin(tiny(), tmp_path) == path
    with pytest.raises(RunError, match=r"holds another run \(train.lr is 0.5, and was 0.01\)"):
        begin(tiny("train.lr=0.5"), tmp_path)


def measuring(server, round, scale=1.0):
    """A request to measure what the round before came to."""
    return replace(server.request(round, scale=scale), measure=True)


def test_a_site_measures_once(tmp_path):
    """A request that comes again gets the same bytes, from the next process too; that to train with the same model is another."""
    server, here = Server(tmp_path / "runs", "data.local_test_fraction=0.3"), site(tmp_path / "here")
    here.greet(server.terms, 1)
    here.answer(server.terms.run, server.request(1), 0)
    said = here.answer(server.terms.run, measuring(server, 2), 1)
    assert said.measure
    again = site(tmp_path / "here")
    again._build = None
    assert again.answer(server.terms.run, measuring(server, 2), 1) == said
    update = here.answer(server.terms.run, server.request(2), 1)
    assert not update.measure
    assert len(update.frame) > len(said.frame)


def test_a_model_that_was_overtaken_is_not_taken(tmp_path):
    """Nor does a site that has lost what belongs with a model measure another; and it holds what older versions wrote."""
    server, here = Server(tmp_path / "runs"), site(tmp_path / "here")
    here.greet(server.terms, 1)
    for number in (1, 2):
        here.answer(server.terms.run, server.request(number), number - 1)
    (asked,) = (tmp_path / "here").glob("fedadapt-site/*/asked-*")
    asked.rename(asked.with_name("asked-2-1"))
    assert here.trained().round == 2
    assert here.answer(server.terms.run, measuring(server, 3, scale=2.0), 2).frame
    newest = here.trained()
    assert newest.round == 2
    here.answer(server.terms.run, measuring(server, 2), 1)
    for name, tensor in here.trained().params.items():
        assert torch.equal(tensor, newest.params[name])
    (kept,) = (tmp_path / "here").glob("fedadapt-site/*/memory-2")
    kept.unlink()
    assert "is lost" in here.answer(server.terms.run, measuring(server, 3, scale=3.0), 2).failure


def test_memory_is_committed_by_the_servers_word(server, tmp_path):
    """A round that did not count leaves no trace: the next starts from what was kept before it."""
    here, other = site(tmp_path / "here"), site(tmp_path / "other")
    for one in (here, other):
        one.greet(server.terms, 1)
        one.answer(server.terms.run, server.request(1), 0)
    here.answer(server.terms.run, server.request(2, scale=2.0), 1)
    assert memories(tmp_path / "here") == [1, 2]
    lost = here.answer(server.terms.run, server.request(3), 1)
    never = other.answer(server.terms.run, server.request(3), 1)
    assert lost.frame == never.frame
    counted = here.answer(server.terms.run, server.request(4), 3)
    fresh = site(tmp_path / "fresh")
    fresh.greet(server.terms, 1)
    assert counted.frame != fresh.answer(server.terms.run, server.request(4), 0).frame
    assert memories(tmp_path / "here") == [3, 4]


def test_a_site_says_its_class_means(tmp_path):
    """The exchange before the first round goes the way of every round, and leaves nothing for the next."""
    server = Server(tmp_path / "runs", "head={name='trained', start='class_means'}")
    warm, here = server.experiment.warm, site(tmp_path / "here")
    here.greet(server.terms, 1)
    flow = play_warm_start(warm, server.experiment.algorithm, [1])
    (request,) = next(flow)
    reply = here.answer(server.terms.run, request, 0)
    assert reply == site(tmp_path / "here").answer(server.terms.run, request, 0)
    with pytest.raises(StopIteration) as stop:
        flow.send([reply])
    assert stop.value.value.clients[0].num_examples == len(build(tiny(*SETTINGS)).clients.train[1])
    other = site(tmp_path / "other")
    other.greet(server.terms, 1)
    assert here.answer(server.terms.run, server.request(1), 0) == other.answer(
        server.terms.run, server.request(1), 0
    )


def test_what_a_lossy_codec_keeps_is_kept(tmp_path):
    """The version that the site holds and what packing lost are there again in the next process."""
    settings = ("codec=rotate > int4 > zstd", "codec.error_feedback=true")
    server = Server(tmp_path / "runs", *settings)
    assert server.experiment.wire.delta
    flow = play(server.experiment.algorithm, server.experiment.wire, server.experiment.first_state(), 1, [1])
    (request,) = next(flow)
    here = site(tmp_path / "here")
    here.greet(server.terms, 1)
    reply = here.answer(server.terms.run, request, 0)
    with pytest.raises(StopIteration) as stop:
        flow.send([reply])
    played = stop.value.value
    assert played.clients[0].outcome == "accepted"
    flow = play(server.experiment.algorithm, server.experiment.wire, played.state, 2, [1])
    (request,) = next(flow)
    assert site(tmp_path / "here").answer(server.terms.run, request, 1).frame
    failed = site(tmp_path / "lost")
    failed.greet(server.terms, 1)
    assert failed.answer(server.terms.run, request, 1).failure


def test_a_stranger_says_so(server, tmp_path):
    """A site that has not agreed to terms, or lost them, cannot answer."""
    assert site(tmp_path / "here").answer(server.terms.run, server.request(), 0) is None


def test_damaged_memory_is_an_error(server, tmp_path):
    """It is not taken for an empty one."""
    here = site(tmp_path / "here")
    here.greet(server.terms, 1)
    here.answer(server.terms.run, server.request(1), 0)
    (file,) = (tmp_path / "here").glob("fedadapt-site/*/memory-1")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunError, match="damaged"):
        here.answer(server.terms.run, server.request(2), 1)


def test_a_full_disk_fails_the_round_and_nothing_else(server, tmp_path, monkeypatch):
    """What cannot be kept is not answered, so that server and site agree on what counted."""
    here = site(tmp_path / "here")
    here.greet(server.terms, 1)
    write = Path.open

    def full(self, mode="r", *rest, **options):
        if "memory" in self.name and "w" in mode:
            raise OSError(28, "No space left on device")
        return write(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        here.answer(server.terms.run, server.request(), 0)
    monkeypatch.undo()
    assert memories(tmp_path / "here") == []
    assert here.answer(server.terms.run, server.request(), 0).frame


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SITE.replace("12", "16"), "images of digits are 3x16x16 here, the federation has 3x12x12"),
        (SITE + '[classes]\nnine = "9"\n', "classes maps 'nine', but digits has the classes 0, 1"),
        (
            SITE + '[classes]\n9 = "ten"\n',
            "class '9' of digits is 'ten' to the federation, which has no such",
        ),
        (SITE.replace("digits", "digit"), "unknown source 'digit'; did you mean 'digits'?"),
        (
            '[source]\nname = "elsewhere"\nclass_names = ["0", "1"]\nsize = 12\n',
            "holds no samples, so a site has nothing to train on",
        ),
    ],
)
def test_data_that_do_not_fit(server, tmp_path, text, why):
    """One line that says what and what to do."""
    fit = site(tmp_path / "here", text).greet(server.terms, 1)
    assert why in fit.problem
    assert "\n" not in fit.problem
    assert not list((tmp_path / "here").glob("fedadapt-site/*/terms.json"))


def test_without_a_number_there_is_no_part(server, tmp_path):
    """Neither the server nor the site file says which client it is."""
    assert "set client in its site file" in site(tmp_path / "here").greet(server.terms, -1).problem
    numbered = site(tmp_path / "there", "client = 2\n" + SITE)
    assert numbered.greet(server.terms, -1).client == 2


@pytest.mark.parametrize("share", ["true", "false"])
def test_a_number_that_no_client_has(server, tmp_path, share):
    """The site and its check say so, before the server does."""
    here = site(tmp_path / "here", "client = 4\n" + SITE.replace("true", share))
    why = "client number 4 is not from 0 to 3; set client in its site file"
    assert here.greet(server.terms, -1).problem == why
    (tmp_path / "terms.json").write_text(server.terms.model_dump_json())
    with pytest.raises(ConfigError, match=f"does not fit: {why}"):
        describe_site(here.path, terms=tmp_path / "terms.json")


def test_a_site_may_insist_on_a_recipe(server, tmp_path):
    """Another recipe than its own is refused; its own is not."""
    own = site(tmp_path / "a", recipe=tiny(*SETTINGS))
    other = site(tmp_path / "b", recipe=tiny(*SETTINGS, "train.lr=0.06"))
    assert own.greet(server.terms, 1).problem == ""
    assert other.greet(server.terms, 1).problem.startswith("recipe is ")


def test_another_backbone_is_refused(server, tmp_path):
    """A weight file of its own that is another network's is noticed before anything is trained."""
    other = build(tiny(*SETTINGS, "seed=5"))
    save_weights(other.backbone.module, tmp_path / "other.safetensors", {})
    fit = site(tmp_path / "here", f'weights = "{tmp_path}/other.safetensors"\n' + SITE).greet(server.terms, 1)
    assert fit.problem.startswith("backbone is ")


@pytest.mark.parametrize("rounding", Rounding)
def test_a_backbone_is_fetched_in_pieces_and_kept(tmp_path, rounding):
    """A site that lacks the weights asks from where it stopped; what is damaged on the way is not used."""
    weights = tmp_path / "pretrained.safetensors"
    save_weights(build(tiny("seed=5")).backbone.module, weights, {})
    server = Server(tmp_path / "runs", f"backbone.weights={weights}", f"federation.backbone_as={rounding}")
    data = (server.path / WEIGHTS).read_bytes()
    weights.unlink()
    here = site(tmp_path / "here")
    small = here.greet(server.terms.model_copy(update={"image": (3, 9, 9)}), 1)
    assert "the federation has 3x9x9" in small.problem
    assert here.greet(server.terms.model_copy(update={"version": "9.9"}), 1).problem.startswith("fedadapt is")
    half = len(data) // 2
    assert here.greet(server.terms, 1).missing_from == 0
    assert here.take(server.terms.backbone, 0, len(data), data[:half]) == half
    assert here.take(server.terms.backbone, 0, len(data), data[:half]) == half
    again = site(tmp_path / "here")
    assert again.greet(server.terms, 1).missing_from == half
    assert again.take(server.terms.backbone, half, len(data), data[half:]) == len(data)
    fit = again.greet(server.terms, 1)
    assert misfit(server.terms, fit) == ""
    (kept,) = (tmp_path / "here").glob("fedadapt-site/backbone-*.safetensors")
    assert hashlib.sha256(kept.read_bytes()).digest() == hashlib.sha256(data).digest()
    for place in (3, len(data) // 2):
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        kept.write_bytes(damaged)
        another = site(tmp_path / "here")
        assert misfit(server.terms, another.greet(server.terms, 1))
        assert another.greet(server.terms, 1).missing_from == 0
        assert another.take(server.terms.backbone, 0, len(data), data) == len(data)
        assert misfit(server.terms, another.greet(server.terms, 1)) == ""
        assert kept.exists()


def test_a_backbone_that_was_whole_at_a_kill_is_put_in_its_place(tmp_path):
    """The last piece had come and the file was not yet where it belongs; if it is damaged it is fetched anew."""
    weights = tmp_path / "pretrained.safetensors"
    save_weights(build(tiny("seed=5")).backbone.module, weights, {})
    server = Server(tmp_path / "runs", f"backbone.weights={weights}")
    data = (server.path / WEIGHTS).read_bytes()
    weights.unlink()
    here = site(tmp_path / "here")
    here.take(server.terms.backbone, 0, len(data), data[:-1])
    (part,) = (tmp_path / "here").glob("fedadapt-site/*.part")
    for whole, missing in ((data, None), (data[:-1] + bytes([data[-1] ^ 1]), 0), (data + b"x", 0)):
        part.write_bytes(whole)
        fit = site(tmp_path / "here").greet(server.terms, 1)
        assert bool(misfit(server.terms, fit)) == (missing is not None)
        assert site(tmp_path / "here").greet(server.terms, 1).missing_from == missing
        assert not part.exists()


def test_own_classes_are_mapped(server, tmp_path):
    """A site with two of the classes under names of its own trains on the federation's numbers."""
    images = np.random.default_rng(0).integers(0, 255, (30, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(30) % 2
    names = np.array(["seven", "3"])
    np.savez(
        tmp_path / "own.npz",
        x_train=images,
        y_train=labels,
        x_test=images[:4],
        y_test=labels[:4],
        class_names=names,
    )
    text = '[source]\nname = "npz"\npath = "../own.npz"\n[classes]\nseven = "7"\n'
    here = site(tmp_path / "here", text)
    fit = here.greet(server.terms, 1)
    assert (fit.problem, fit.num_examples) == ("", 30)
    experiment, _ = here._build(server.terms, 1)
    assert experiment.dataset.train.labels[:4].tolist() == [7, 3, 7, 3]


def test_check_tells_what_a_site_would_bring(tmp_path):
    """Its samples, classes and versions, and with a recipe the backbone."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[backbone]\nname = "resnet20"\nwidth = 0.25\n[data]\nnum_clients = 3\n[data.source]\nname = "digits"\nsize = 12\n'
    )
    here = site(tmp_path / "here")
    found = describe_site(here.path, recipe)
    assert found["data"] == "digits: 1438 samples, images 3x12x12"
    assert found["classes"].startswith("0 (")
    assert found["backbone"].startswith("resnet20 ")
    recipe.write_text(recipe.read_text() + '[federation]\nbackbone_as = "int8"\n')
    assert describe_site(here.path, recipe)["backbone"] != found["backbone"]
    with pytest.raises(DataError, match="images of digits are 3x16x16 here, the federation has 3x12x12"):
        describe_site(site(tmp_path / "large", SITE.replace("12", "16")).path, recipe)
    with pytest.raises(ConfigError, match="client number 3 is not from 0 to 2"):
        describe_site(site(tmp_path / "third", "client = 3\n" + SITE).path, recipe)


def test_check_compares_what_the_server_will(tmp_path, server):
    """With the terms of a run: digests where the site fits, one line where it does not, and nothing is written."""
    file = tmp_path / "terms.json"

    def told(**terms):
        file.write_text(server.terms.model_copy(update=terms).model_dump_json())
        return describe_site(here.path, terms=file)

    here = site(tmp_path / "here")
    before = sorted(here.path.parent.rglob("*"))
    found = told()
    assert server.terms.backbone.startswith(found["backbone"])
    assert server.terms.layout.startswith(found["layout"])
    for terms, why in (
        ({"backbone": "ab" * 32}, "backbone"),
        ({"version": "9.9"}, "the federation has 9.9"),
        ({"image": (3, 9, 9)}, "the federation has 3x9x9"),
        ({"class_names": ("cat", "dog")}, "does not fit"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            told(**terms)
        assert "\n" not in str(caught.value)
    assert told()["backbone"] == found["backbone"]
    other = tmp_path / "other.toml"
    other.write_text(
        'rounds = 9\n[backbone]\nname = "resnet20"\nwidth = 0.25\n[data.source]\nname = "digits"\nsize = 12\n'
    )
    with pytest.raises(ConfigError, match="recipe is"):
        describe_site(here.path, other, file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        describe_site(here.path, terms=file)
    assert sorted(here.path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("client = 1", "key 'source' is required"),
        ("[source]\nname='digits'\n[sauce]\n", "unknown key 'sauce'; did you mean 'source'?"),
        ("client = -1\n[source]\nname='digits'", "key 'client' is -1"),
        ("=", "is not TOML"),
    ],
)
def test_wrong_site_files(tmp_path, text, why):
    """One line each."""
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_site(tmp_path / "site.toml")


def test_a_missing_site_file(tmp_path):
    """Says which."""
    with pytest.raises(ConfigError, match="cannot read site file"):
        load_site(tmp_path / "none.toml")


def test_a_full_disk_is_one_line_and_the_site_goes_on(server, tmp_path):
    """An answer that cannot be written down is not given; once there is room again the site goes on as before."""
    here, there = site(tmp_path / "here"), site(tmp_path / "there")
    for one in (here, there):
        one.greet(server.terms, 1)
        one.answer(server.terms.run, server.request(1), 0)
    ask = Ask(run=server.terms.run, round=2, client=1, accepted=1).model_dump_json()
    parcel, desk = Parcel(ROUND, ask, server.request(2).frame), SiteDesk(here)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        failed = Answer.model_validate_json(desk(parcel).text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in failed.failure
    assert "\n" not in failed.failure
    assert memories(tmp_path / "here") == [1]
    assert not list(tmp_path.glob("here/**/*.part"))
    # The server recorded a failure, so the next request still goes by the first round.
    after = here.answer(server.terms.run, server.request(3), 1)
    assert after.frame == there.answer(server.terms.run, server.request(3), 1).frame


def test_a_simulated_clock_is_refused(tmp_path):
    """Buffered updates arrive by a drawn clock; between sites they would arrive by another."""
    with pytest.raises(ConfigError, match="simulated clock"):
        begin(tiny("algorithm=fedbuff", "algorithm.buffer=2"), tmp_path)
    assert not list(tmp_path.iterdir())
