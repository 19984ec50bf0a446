"""Before the first round the head can start from class means: exact, counted, checked, and none of the algorithm's business."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.cases import CLASSES, MEAN, SIZES, STD, tiny_backbone, tiny_party, tiny_wire

from fedadapt.adapters import attach
from fedadapt.adapters.class_means import class_moments, head_from_moments
from fedadapt.data.augment import normalise
from fedadapt.engines.local import LocalEngine
from fedadapt.errors import ClientError, ConfigError
from fedadapt.federation.frame import Frame, Kind, unpack
from fedadapt.federation.messages import Reply
from fedadapt.federation.round import play
from fedadapt.federation.round_zero import play_warm_start
from fedadapt.federation.serve import serve
from fedadapt.federation.warm_start import CODEC, KEY, warm_start
from fedadapt.params import expand
from fedadapt.registry import create
from fedadapt.runs.records import Direction, Outcome

COHORT = list(range(len(SIZES)))


def party_of(start="class_means", codec="float32", algorithm="fedavg", **options):
    """A site that simulates ragged clients of a model whose head starts from class means."""
    head = create("head policy", "trained", {"start": start})
    adapter, norms = create("adapter", "parallel"), create("norm policy", "frozen")
    model = attach(tiny_backbone(), adapter, norms, torch.Generator().manual_seed(0), head)
    technique = create("algorithm", algorithm)
    return tiny_party(
        model, algorithm=technique, wire=tiny_wire(model, codec, technique.local.kept, **options)
    )


def exchange(party, change=lambda replies: replies, chunk=16):
    """What the exchange came to, its requests, and its replies after `change`."""
    flow = play_warm_start(warm_start(party.model, party.wire), party.algorithm, COHORT)
    requests = next(flow)
    replies = change(LocalEngine(party, chunk).exchange(requests))
    with pytest.raises(StopIteration) as stop:
        flow.send(replies)
    return stop.value.value, requests, replies


@pytest.mark.parametrize("start", ["class_means", "lda"])
def test_the_head_is_that_of_all_samples_together(start):
    """However ragged the clients are, and in whatever chunks they answer."""
    party = party_of(start)
    images = normalise(party.split.images, MEAN, STD, torch.float32)
    _, features = party.model.with_features(expand(party.model.start, 1), images)
    moments = class_moments(features, party.split.labels, CLASSES, products=start == "lda")
    weight, bias = head_from_moments(moments)
    played, _, _ = exchange(party)
    torch.testing.assert_close(played.state["model"]["fc.weight"], weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(played.state["model"]["fc.bias"], bias, rtol=1e-3, atol=1e-3)
    others = {n: t for n, t in played.state["model"].items() if not n.startswith("fc.")}
    assert all(torch.equal(tensor, party.model.start[name]) for name, tensor in others.items())
    again, _, _ = exchange(party, chunk=3)
    assert all(torch.equal(again.state["model"][n], t) for n, t in played.state["model"].items())
    assert again.ledger == played.ledger


@pytest.mark.parametrize(("start", "values"), [("class_means", 46), ("lda", 46 + 36)])
def test_every_byte_is_in_the_ledger_of_round_zero(start, values):
    """8 features and 5 classes: 5 counts, 40 sums, a square, and of 8 x 8 products the 36 that differ."""
    party = party_of(start)
    played, requests, replies = exchange(party)
    moved = {Direction.DOWNLOAD: sum(len(r.frame) for r in requests)}
    moved[Direction.UPLOAD] = sum(len(r.frame) for r in replies)
    for way, expected in moved.items():
        assert sum(e.num_bytes for e in played.ledger if e.direction is way) == expected
    assert {e.round for e in played.ledger} == {0}
    assert {e.num_bytes for e in played.ledger if e.group == "head"} == {4 * values}
    assert {way.value: n // len(COHORT) for way, n in moved.items()} == warm_start(
        party.model, party.wire
    ).message_bytes
    assert [record.num_examples for record in played.clients] == list(SIZES)


def says(party, client, **changed):
    """A reply with moments of zeros, but for what is changed."""
    layout = warm_start(party.model, party.wire).layout
    moments = {name: torch.zeros(shape) for name, shape in layout.items()}
    section = CODEC.encode(moments | {n: torch.tensor(v).expand(layout[n]) for n, v in changed.items()}, KEY)
    frame = Frame(Kind.UPLOAD, 0, client, party.wire.identity, (), (section,))
    return Reply(0, client, frame.pack())


@pytest.mark.parametrize(
    ("damage", "outcome", "said"),
    [
        (lambda party, reply: says(party, reply.client, counts=float("nan")), Outcome.REFUSED, "NaN"),
        (lambda party, reply: says(party, reply.client, counts=-1.0), Outcome.REFUSED, "not counts"),
        (lambda party, reply: says(party, reply.client, counts=0.5), Outcome.REFUSED, "not counts"),
        (lambda party, reply: says(party, reply.client), Outcome.REFUSED, "not counts"),
        (lambda party, reply: says(party, reply.client, counts=1.0, square=-1.0), Outcome.REFUSED, "no sums"),
        (lambda party, reply: says(party, reply.client, counts=1.0, sums=1e6), Outcome.REFUSED, "no sums"),
        (lambda party, reply: replace(reply, frame=reply.frame + b"x"), Outcome.REFUSED, "longer than"),
        (lambda party, reply: replace(reply, frame=reply.frame[:-1]), Outcome.REFUSED, "claims"),
        (lambda party, reply: replace(reply, round=1), Outcome.ABSENT, "no reply"),
        (lambda party, reply: Reply(0, reply.client, failure="fell ill"), Outcome.FAILED, "fell ill"),
    ],
)
def test_a_reply_is_checked_and_the_others_count(damage, outcome, said):
    """One client's nonsense is recorded, and the head is that of the others."""
    party = party_of()
    ill = 7
    played, _, _ = exchange(party, lambda all_: [damage(party, r) if r.client == ill else r for r in all_])
    record = played.clients[ill]
    assert (record.outcome, said in record.reason) == (outcome, True), record.reason
    without, _, _ = exchange(party, lambda all_: [r for r in all_ if r.client != ill])
    assert torch.equal(played.state["model"]["fc.weight"], without.state["model"]["fc.weight"])


def test_who_counts_more_samples_than_any_may_have_is_refused():
    """As in every later round; one that has just so many is taken."""
    party = party_of()
    party = replace(party, wire=replace(party.wire, max_examples=sorted(SIZES)[-2]))
    played, _, _ = exchange(party)
    refused = [record for record in played.clients if record.outcome is Outcome.REFUSED]
    assert [record.client for record in refused] == [SIZES.index(max(SIZES))]
    assert "federation.max_examples" in refused[0].reason


@pytest.mark.parametrize("lie", ["off the squares", "less than none"])
def test_products_that_no_features_have_are_refused(lie):
    """The covariance of all would have directions in which there is less than no variance."""
    party = party_of("lda")
    wire, layout = party.wire, warm_start(party.model, party.wire).layout

    def change(replies):
        frame = unpack(replies[7].frame, max_bytes=10**6)
        moments = CODEC.decode(frame.sections[0], layout, KEY)
        products = moments["products"] * (2 if lie == "off the squares" else 1)
        if lie == "less than none":
            products[1] += 10 * products.abs().max()
        section = CODEC.encode(moments | {"products": products}, KEY)
        lying = Frame(Kind.UPLOAD, 0, 7, wire.identity, (), (section,)).pack()
        return [replace(reply, frame=lying) if reply.client == 7 else reply for reply in replies]

    played, _, _ = exchange(party, change)
    assert [record.client for record in played.clients if record.outcome is Outcome.REFUSED] == [7]
    assert "hold products that features of no samples have" in played.clients[7].reason


def test_who_outweighs_the_others_is_named():
    """Moments that are possible by themselves, but for what rounding may do, and beside which what the others say is nothing."""
    party = party_of()
    loud = {"counts": 2.0**50, "sums": 1e3 * 2.0**50, "square": (1 - 5e-6) * CLASSES * 8 * 1e6 * 2.0**50}
    with pytest.raises(
        ClientError, match=r"vary within classes.*largest features are those of client 7, 2.83e\+03 long"
    ):
        exchange(party, lambda all_: [says(party, 7, **loud) if r.client == 7 else r for r in all_])


def test_a_damaged_request_is_answered_with_the_reason():
    """And so is a client without samples."""
    party = party_of()
    _, requests, _ = exchange(party)
    damaged = replace(requests[0], frame=requests[0].frame[:-1])
    assert "frame" in serve([damaged], party)[0].failure
    empty = replace(party, indices=[torch.empty(0, dtype=torch.int64)])
    assert serve(requests[:1], empty)[0].failure == "client holds no training samples"


def test_downloads_as_steps_lead_to_the_head():
    """Clients hold the start that they make themselves; the first step brings them the head."""
    party = party_of(codec="int8", delta=True)
    played, _, _ = exchange(party)
    flow = play(party.algorithm, party.wire, played.state, 1, [0, 1])
    requests = next(flow)
    replies = serve(requests, party)
    assert [reply.failure for reply in replies] == ["", ""]
    held, wanted = party.memory[-1]["held:model"]["fc.weight"], played.state["model"]["fc.weight"]
    assert float((held - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_a_head_that_clients_keep_cannot_be_started_by_the_server():
    """Whether the head policy or the algorithm keeps it."""
    party = party_of(algorithm="fedper")
    with pytest.raises(ConfigError, match=r"head.start sets the head that the server sends, but here each"):
        warm_start(party.model, party.wire)
    with pytest.raises(ConfigError, match="unknown key 'start'"):
        create("head policy", "kept", {"start": "class_means"})
