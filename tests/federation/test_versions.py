"""All holders of a version hold the same bits, however they came to it, and whoever cannot says so."""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import replace

import pytest
import torch
from contracts.cases import first_state, jiggle, tiny_model, tiny_party, tiny_wire
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.codecs import make_codec
from fedadapt.engines.local import LocalEngine
from fedadapt.errors import DigestMismatch, FrameError
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import EVERYONE
from fedadapt.federation.round import play
from fedadapt.federation.serve import RESIDUAL, serve
from fedadapt.federation.versions import Track, Version, read_track, recall, remember, take
from fedadapt.params import Group, add, from_bytes, to_bytes, zeros_like
from fedadapt.runs.records import FRAMING, ClientRecord, Direction, Outcome
from fedadapt.seeds import Seeds

MODEL = tiny_model()
CODECS = (
    "float32",
    "int8 > zstd",
    "rotate(block=64) > int4",
    "topk(fraction=0.1) > ternary",
    "mask(period=3)",
    "rotate(block=64) > int2",
)
START = {"model": {name: tensor.clone() for name, tensor in MODEL.start.items()}}


def wire_of(codec):
    """The wire with downloads as steps."""
    return tiny_wire(MODEL, codec, delta=True)


def walk(wire, rounds, scale=0.05):
    """The tracks of a server whose model moves in every round, from before the first one."""
    tracks, model = [Track(Version(0, START), {}, {})], START["model"]
    for round in range(1, rounds + 1):
        tracks.append(tracks[-1].advance(wire, round, {"model": model}))
        model = jiggle(model, seed=round, scale=scale)
    return tracks


def same(one, other):
    """Whether two versions hold the same bits under the same number."""
    return one.number == other.number and all(
        torch.equal(tensor, other.streams["model"][name]) for name, tensor in one.streams["model"].items()
    )


@pytest.mark.parametrize("codec", CODECS)
def test_every_way_leads_to_the_same_bits(codec):
    """From each version that a client may hold, the download leads to what the server believes it holds."""
    wire = wire_of(codec)
    tracks = walk(wire, 5)
    newest = tracks[-1].newest
    for base in (-1, *known(tracks[-1])):
        for track in tracks[max(0, base) :]:
            assert same(take(wire, tracks[-1].frame(wire, base), 5, track.newest), newest)


def known(track):
    """The versions from which the track has steps."""
    return [held for held in range(track.newest.number) if replace(track, holders={0: held}).base(0) == held]


def test_the_first_download_costs_nothing():
    """Everybody makes version 0 by itself, and the first model is the same: a header and empty sections."""
    wire = wire_of("int8")
    frame = walk(wire, 1)[-1].frame(wire, 0)
    assert len(frame) == 68 + 8 * 2 + 8 * 3


@pytest.mark.parametrize("codec", CODECS[1:])
def test_what_packing_lost_is_made_good(codec):
    """If the model rests, what clients hold comes ever nearer to it."""
    wire, target = wire_of(codec), {"model": jiggle(START["model"], scale=0.5)}
    track, distances = Track(Version(0, START), {}, {}), []
    for round in range(1, 13):
        track = track.advance(wire, round, target)
        held = track.newest.streams["model"]
        distances.append(sum(float((held[n] - t).square().sum()) for n, t in target["model"].items()) ** 0.5)
    assert distances[-1] < 0.5 * distances[0]


def test_steps_are_kept_while_they_are_worth_it():
    """Never more bytes of steps than the version whole; and only clients within their reach are remembered."""
    wire = wire_of("int4")
    whole = 4 * sum(tensor.numel() for tensor in START["model"].values())
    track = walk(wire, 1)[-1]
    for round in range(2, 40):
        track = track.advance(wire, round, {"model": jiggle(START["model"], seed=round)})
        track = track.after([ClientRecord(round, 100 * round + c, Outcome.ACCEPTED) for c in range(5)])
        assert sum(len(section) for step in track.steps.values() for section in step) < whole
        assert list(track.steps) == list(range(min(track.steps), round + 1))
    # int4 takes an eighth and the scales: of eight steps, seven stay.
    assert len(track.steps) in (6, 7)
    assert len(track.holders) == 5 * (len(track.steps) + 1)
    assert [track.base(100 * round) for round in (1, 20, 39, 38)] == [-1, -1, 39, 38]


def test_a_track_survives_a_file():
    """What is committed with the state comes back: version, steps, clients."""
    wire = wire_of("int8 > zstd")
    track = walk(wire, 4)[-1].after(
        [ClientRecord(4, 7, Outcome.ACCEPTED), ClientRecord(4, 9, Outcome.FAILED)]
    )
    again = read_track(from_bytes(to_bytes(track.to_streams())), ["model"])
    assert same(again.newest, track.newest)
    assert (dict(again.steps), dict(again.holders)) == (dict(track.steps), {7: 4, 9: -1})
    site = recall(from_bytes(to_bytes(remember(track.newest))))
    assert same(site, track.newest)


def rounds_of(party, cohorts, lose=()):
    """Plays rounds; the site forgets everything before those in `lose`."""
    state, played, sent = first_state(party), [], []
    for round, cohort in enumerate(cohorts, start=1):
        if round in lose:
            party.memory.clear()
        flow = play(party.algorithm, party.wire, state, round, cohort)
        requests = next(flow)
        sent.append({request.client: request.frame for request in requests})
        with pytest.raises(StopIteration) as stop:
            flow.send(LocalEngine(party, 3).exchange(requests))
        played.append(stop.value.value)
        state = played[-1].state
    return state, played, sent


def test_clients_of_one_version_get_one_frame():
    """Those who were there last round get a step, those who were not get two, and equal frames are one object."""
    party = tiny_party(MODEL, wire=wire_of("int8 > zstd"))
    _, played, sent = rounds_of(party, [[0, 2, 3, 5], [0, 2], [0, 2, 3, 5, 8]])
    last = sent[2]
    assert last[0] is last[2]
    assert last[3] is last[5]
    assert len({id(frame) for frame in last.values()}) == 3
    assert len(last[0]) < len(last[3])
    assert all(record.outcome is Outcome.ACCEPTED for record in played[2].clients)
    for client, frame in last.items():
        entries = [e for e in played[2].ledger if (e.client, e.direction) == (client, Direction.DOWNLOAD)]
        assert sum(entry.num_bytes for entry in entries) == len(frame)
        assert {entry.group for entry in entries} == {*map(str, party.wire.plan.groups()), FRAMING}


def test_a_site_holds_one_version_for_all_its_clients():
    """Its memory does not grow with the clients that it trains."""
    party = tiny_party(MODEL, wire=wire_of("int8 > zstd"))
    state, _, _ = rounds_of(party, [[0, 2, 3, 5, 8, 9], [4, 6, 7]])
    assert list(party.memory) == [EVERYONE]
    assert same(recall(party.memory[EVERYONE]), read_track(state, ["model"]).newest)


def test_a_site_that_lost_its_memory_is_sent_all():
    """It refuses the step in one line, and has the whole version in the next round."""
    party = tiny_party(MODEL, wire=wire_of("int8 > zstd"))
    _, played, sent = rounds_of(party, [[2, 3], [2, 3], [2, 3], [2, 3]], lose=[3])
    outcomes = [[record.outcome for record in each.clients] for each in played]
    assert outcomes == [[Outcome.ACCEPTED] * 2] * 2 + [[Outcome.FAILED] * 2, [Outcome.ACCEPTED] * 2]
    assert played[2].clients[0].reason == "download starts from version 2, this party holds 0"
    assert len(sent[3][2]) > 4 * sum(tensor.numel() for tensor in START["model"].values())


def test_a_site_that_holds_something_else_says_so():
    """Another start, of the same names and shapes, is found by the checksum."""
    wire = wire_of("int8")
    track = walk(wire, 3)[-1]
    other = Version(0, {"model": jiggle(START["model"])})
    with pytest.raises(FrameError, match="leads to other values"):
        take(wire, track.frame(wire, 0), 3, other)
    assert same(take(wire, track.frame(wire, -1), 3, other), track.newest)


def test_a_download_may_come_twice():
    """A site that has taken it already, or part of its steps, does not take them again."""
    wire = wire_of("int8")
    tracks = walk(wire, 3)
    frame = tracks[3].frame(wire, 1)
    taken = take(wire, frame, 3, tracks[2].newest)
    assert take(wire, frame, 3, taken) is taken
    with pytest.raises(FrameError, match="starts from version 1, this party holds 0"):
        take(wire, frame, 3, tracks[0].newest)


WIRE = wire_of("int8 > zstd")
WHOLE = walk(WIRE, 3)[-1].frame(WIRE, 1)


@settings(max_examples=100)
@given(place=st.integers(0, len(WHOLE) - 5), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_damaged_download_is_refused(place, byte, cut):
    """Altered under a sound checksum or cut off, it raises FrameError or leads to the very same values."""
    bad = bytearray(WHOLE[:-4])
    bad[place] = byte
    sealed = bytes(bad) + struct.pack("<I", zlib.crc32(bytes(bad)))
    held = walk(WIRE, 1)[-1].newest
    try:
        taken = take(WIRE, sealed[: len(sealed) - cut], 3, held)
    except FrameError as error:
        assert "\n" not in str(error)
    else:
        assert taken.checksum == walk(WIRE, 3)[-1].newest.checksum


def test_lossless_steps_train_as_whole_models_do():
    """With float32 what clients send is what they send with plain downloads, but for rounding."""
    deltas = []
    for delta in (False, True):
        party = tiny_party(MODEL, wire=tiny_wire(MODEL, delta=delta))
        state, _, _ = rounds_of(party, [[0, 2, 3]] * 3)
        deltas.append(state["model"])
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_groups_and_directions_have_codecs_of_their_own():
    """The sections of a group have the size that its codec says, up and down."""
    groups = {Group.HEAD: make_codec("int8"), Group.NORM_AFFINE: make_codec("float16")}
    wire = tiny_wire(MODEL, "int4", groups=groups, download=make_codec("bfloat16"), delta=False)
    party = tiny_party(MODEL, wire=wire)
    _, played, _ = rounds_of(party, [[2]])
    values = {s.group: s.num_values for s in wire.plan.summary() if s.num_bytes}
    up = {e.group: e.num_bytes for e in played[0].ledger if e.direction is Direction.UPLOAD}
    down = {e.group: e.num_bytes for e in played[0].ledger if e.direction is Direction.DOWNLOAD}
    adapter = values[Group.ADAPTER]
    assert up["adapter"] == 2 * -(-adapter // 128) + -(-adapter // 2)
    assert up["norm_affine"] == 2 * values[Group.NORM_AFFINE]
    assert up["head"] == 2 * -(-values[Group.HEAD] // 256) + values[Group.HEAD]
    assert {group: down[group] for group in values} == {group: 2 * n for group, n in values.items()}


def test_another_seed_is_another_identity():
    """Two parties whose draws would differ notice before they misread each other; without draws they need not."""
    mine, theirs = wire_of("int8"), replace(wire_of("int8"), seeds=Seeds(4))
    frame = walk(theirs, 2)[-1].frame(theirs, 1)
    with pytest.raises(DigestMismatch, match="codec"):
        take(mine, frame, 2, walk(mine, 1)[-1].newest)
    plain = tiny_wire(MODEL)
    assert plain.identity == replace(plain, seeds=Seeds(4)).identity


def test_a_million_clients_cost_what_the_cohort_costs():
    """A round in which nobody was seen before, of a million registered, takes no longer than one of ten."""
    wire = wire_of("int8 > zstd")
    track, begun = walk(wire, 1)[-1], time.perf_counter()
    for round in range(2, 6):
        track = track.advance(wire, round, {"model": jiggle(START["model"], seed=round)})
        cohort = range(round * 10**6, round * 10**6 + 100)
        assert len({track.base(client) for client in cohort}) == 1
        track = track.after([ClientRecord(round, client, Outcome.ACCEPTED) for client in cohort])
    assert len(track.holders) <= 400
    assert time.perf_counter() - begun < 30


def delta_of(party, round, client):
    """What a client's upload says if it trains from `START`."""
    (request,) = next(play(party.algorithm, party.wire, START, round, [client]))
    (reply,) = serve([request], party)
    return party.wire.read(reply.frame, Kind.UPLOAD, round, client, ("delta",), 3).streams["delta"]


def test_errors_are_fed_back():
    """Uploads and what a client keeps add up to what it would have sent, round after round."""
    exact = tiny_wire(MODEL)
    lossy = tiny_wire(MODEL, "topk(fraction=0.05) > int4", download=exact.codec, error_feedback=True)
    plain, party = tiny_party(MODEL, wire=exact), tiny_party(MODEL, wire=lossy)
    would, said = zeros_like(START["model"]), zeros_like(START["model"])
    for round in (1, 2, 3):
        would, said = add(would, delta_of(plain, round, 9)), add(said, delta_of(party, round, 9))
        kept = party.memory[9][f"{RESIDUAL}delta"]
        torch.testing.assert_close(add(said, kept), would, rtol=1e-4, atol=1e-6)
    assert any(tensor.any() for tensor in kept.values())
    assert list(party.memory) == [9]


def test_an_upload_that_cannot_be_packed_is_a_failure():
    """A client whose values are too large for the codec says so, and keeps what it kept."""
    wire = tiny_wire(MODEL, "float16")
    party = tiny_party(MODEL, wire=replace(wire, download=tiny_wire(MODEL).codec), lr=1e7, batch_size=64)
    (request,) = next(play(party.algorithm, party.wire, first_state(party), 1, [0]))
    (reply,) = serve([request], party)
    assert "use codec bfloat16" in reply.failure
    assert party.memory == {}
