"""Rounds between sites that come late, go, lie, or answer twice; the sites are real apps on a scripted way."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod, arrays_size_mod, message_size_mod
from flwr.serverapp import Grid

from fedadapt.engines.flower.carry import REQUESTS
from fedadapt.engines.flower.client_app import make_client_app
from fedadapt.engines.flower.desk import SiteDesk
from fedadapt.engines.flower.engine import PIECE_BYTES, FlowerEngine
from fedadapt.engines.flower.mandate import Mandate, Patience
from fedadapt.errors import ClientError, EngineError
from fedadapt.federation.handshake import Fit, Terms
from fedadapt.federation.messages import Reply, Request
from fedadapt.runs.records import Outcome

TERMS = Terms(
    run="ab" * 8,
    recipe="{}",
    class_names=("cat", "dog"),
    image=(3, 12, 12),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    backbone="cd" * 32,
    backbone_bytes=PIECE_BYTES + 10,
    layout="ef" * 16,
    codec="float32",
    version="0.1.0",
)
GOOD = {
    "num_examples": 7,
    "recipe": TERMS.recipe_digest,
    "backbone": TERMS.backbone,
    "layout": TERMS.layout,
    "codec": TERMS.codec,
    "version": TERMS.version,
}


class ScriptedSite:
    """A site that says what the test wants."""

    def __init__(self, client, *, fit=(), missing=False, knows=True):
        self.client, self.fit, self.missing, self.knows = client, dict(fit), missing, knows
        self.asked, self.pieces, self.broken, self.measured = [], [], False, 0

    def greet(self, terms, client):
        """Fits, unless told otherwise."""
        self.knows = True
        if self.missing and sum(map(len, self.pieces)) < terms.backbone_bytes:
            return Fit(client=self.client, missing_from=sum(map(len, self.pieces)))
        return Fit(**{"client": self.client if client < 0 else client, **GOOD, **self.fit})

    def take(self, backbone, offset, total, data):
        """Keeps the piece."""
        self.pieces.append(data)
        return offset + len(data)

    def answer(self, run, request, accepted):
        """Answers with the client's number as its frame."""
        self.asked.append((request.round, accepted))
        self.measured += request.measure
        if not self.knows:
            return None
        if request.frame == b"fail" or self.broken:
            raise ClientError("no room\nfor it")
        return Reply(request.round, request.client, b"%d" % request.client)


class ScriptedGrid(Grid):
    """Carries messages to apps at once; replies wait until the test's clock lets them arrive."""

    def __init__(self):
        self.now, self.nodes, self.delay, self.script = 0.0, {}, {}, {}
        self.replies, self.sent, self.broken = {}, 0, False

    def at(self, when, action):
        """Does something at a time of the clock."""
        self.script[when] = action

    def sleep(self, seconds):
        """Lets time pass."""
        self.now += seconds
        assert self.now < 10_000, "the round does not close"
        for when in [when for when in self.script if when <= self.now]:
            self.script.pop(when)()

    def add(self, node, site, delay=0.0, mods=()):
        """A node comes online."""
        app = make_client_app(lambda paths: SiteDesk(site), mods)
        self.nodes[node], self.delay[node] = (app, site), delay

    def get_node_ids(self):
        """Who is online."""
        if self.broken:
            raise ConnectionRefusedError("refused")
        return list(self.nodes)

    def push_messages(self, messages):
        """Runs the app of the node; an app that fails or is gone leaves an error."""
        (message,) = messages
        self.sent += 1
        key, node = f"m{self.sent}", message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = key
        app, _ = self.nodes[node]
        context = Context(1, node, {"site": "x"}, RecordDict(), {})
        delay = self.delay[node] if message.metadata.message_type in REQUESTS else 0.0
        self.replies[key] = (self.now + delay, app(message, context))
        return [key]

    def pull_messages(self, keys):
        """What has arrived."""
        due = [key for key in keys if key in self.replies and self.replies[key][0] <= self.now]
        found = []
        for key in due:
            reply = self.replies.pop(key)[1]
            reply.metadata.__dict__["_reply_to_message_id"] = key
            found.append(reply)
        return found

    def send_and_receive(self, messages, *, timeout=None):
        """Is not used."""
        raise NotImplementedError

    def create_message(self, *arguments, **options):
        """Is not used."""
        raise NotImplementedError

    def set_run(self, run):
        """Is not used."""

    @property
    def run(self):
        """Is not used."""
        raise NotImplementedError


@pytest.fixture
def grid(monkeypatch):
    """Messages can only be made inside one of Flower's tasks; this is what Flower sets there."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity.{name}", 1)
    return ScriptedGrid()


def engine_on(grid, *, quorum=1, deadline=None, numbers=None, accepted=lambda client: 0, clients=3):
    """An engine for the rounds of a test, and what it says."""
    said = []
    mandate = Mandate(
        TERMS,
        clients,
        Patience(quorum, deadline),
        lambda offset, count: bytes(count),
        accepted,
        numbers or {},
        said.append,
    )
    return FlowerEngine(grid, mandate, lambda: grid.now, grid.sleep), said


def requests(round=1, clients=(0, 1, 2), frame=b"down"):
    """One request for each client."""
    return [Request(round, client, frame) for client in clients]


def answered(replies):
    """Round, client and frame of each reply that came, sorted."""
    came = [reply for reply in replies if reply.outcome is not Outcome.ABSENT]
    return sorted((reply.round, reply.client, reply.frame) for reply in came)


def test_all_sites_answer(grid):
    """Without a deadline a round waits for whoever is asked, however late they join."""
    engine, said = engine_on(grid)
    grid.add(10, ScriptedSite(0))
    grid.at(50, lambda: grid.add(11, ScriptedSite(1)))
    grid.at(99, lambda: grid.add(12, ScriptedSite(2)))
    assert answered(engine.exchange(requests())) == [(1, 0, b"0"), (1, 1, b"1"), (1, 2, b"2")]
    assert grid.now >= 99
    assert "client 0 is here with 7 samples" in said


def test_a_round_closes_at_its_deadline_with_a_quorum(grid):
    """The deadline counts from when a quorum is there; who is late is left out, and heard in the next round."""
    engine, _ = engine_on(grid, quorum=2, deadline=30)
    grid.at(100, lambda: grid.add(10, ScriptedSite(0)))
    grid.at(200, lambda: grid.add(11, ScriptedSite(1)))
    grid.at(200.5, lambda: grid.add(12, ScriptedSite(2), delay=45.0))
    assert answered(engine.exchange(requests())) == [(1, 0, b"0"), (1, 1, b"1")]
    assert 230 < grid.now < 235
    grid.delay[12] = 0.0
    grid.delay[10] = 20.0
    replies = engine.exchange(requests(round=2))
    assert answered(replies) == [(1, 2, b"2"), (2, 0, b"0"), (2, 1, b"1"), (2, 2, b"2")]


def test_a_round_stays_open_without_a_quorum(grid):
    """Past its deadline a round waits until enough updates are there."""
    engine, _ = engine_on(grid, quorum=2, deadline=10)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1), delay=500.0)
    replies = engine.exchange(requests(clients=(0, 1, 2)))
    assert answered(replies) == [(1, 0, b"0"), (1, 1, b"1")]
    assert grid.now >= 500


def test_failures_are_no_quorum(grid):
    """A failure is an answer but no update; its reason is one line."""
    engine, _ = engine_on(grid)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1))
    asked = [*requests(clients=(0,), frame=b"fail"), *requests(clients=(1,))]
    bad, good = sorted(engine.exchange(asked), key=lambda reply: reply.client)
    assert (bad.failure, bad.frame, bad.downloads) == ("no room for it", b"", 1)
    assert (good.failure, good.frame) == ("", b"1")


def test_what_ails_all_sites_does_not_use_up_the_rounds(grid):
    """Where a quorum is wanting those that failed are asked again, now and then, until it is mended."""
    engine, said = engine_on(grid, quorum=2, deadline=10)
    sites = [ScriptedSite(0), ScriptedSite(1)]
    for node, site in enumerate(sites):
        site.broken = True
        grid.add(node + 10, site)
    grid.at(300, lambda: [setattr(site, "broken", False) for site in sites])
    replies = engine.exchange(requests(clients=(0, 1)))
    assert answered(replies) == [(1, 0, b"0"), (1, 1, b"1")]
    assert 300 < grid.now < 400
    assert {len(site.asked) for site in sites} == {replies[0].downloads} == {6}
    assert said.count("round 1: 0 of 2 updates; asking those that failed again") == 5


def test_a_site_that_failed_is_asked_again_while_another_is_away(grid):
    """Who is not there is not waited for before those that failed are asked again."""
    engine, _ = engine_on(grid, quorum=2, deadline=10)
    failing = ScriptedSite(0)
    failing.broken = True
    grid.add(10, failing)
    grid.add(11, ScriptedSite(1))
    grid.at(100, lambda: setattr(failing, "broken", False))
    assert answered(engine.exchange(requests())) == [(1, 0, b"0"), (1, 1, b"1")]
    assert 100 < grid.now < 200


def test_a_site_that_lost_what_it_held_is_sent_the_whole(grid):
    """Within the round: with a quorum that needs it there is no next one; and what went out is counted as what it was."""

    class Forgetful(ScriptedSite):
        def answer(self, run, request, accepted):
            self.frames = [*getattr(self, "frames", []), request.frame]
            if request.frame != b"whole":
                raise ClientError("download starts from version 2, this party holds 0")
            return super().answer(run, request, accepted)

    engine, _ = engine_on(grid, quorum=2)
    site, made = Forgetful(1), []

    def whole():
        made.append(grid.now)
        return b"whole"

    grid.add(10, ScriptedSite(0))
    grid.add(11, site)
    replies = engine.exchange([replace(one, whole=whole) for one in requests(clients=(0, 1))])
    assert answered(replies) == [(1, 0, b"0"), (1, 1, b"1")]
    assert site.frames == [b"down", b"whole"]
    assert len(made) == 1
    assert {r.client: (r.downloads, r.wholes) for r in replies} == {0: (1, 0), 1: (2, 1)}


def test_a_loss_is_not_forgotten_by_falling_silent(grid):
    """A site that failed, was sent the whole and then said nothing has failed: the server must not think that it holds a version."""
    engine, _ = engine_on(grid, quorum=2, deadline=30, clients=3)
    lost = ScriptedSite(2)
    lost.broken = True
    grid.add(10, ScriptedSite(0))
    grid.add(12, lost)
    grid.at(70, lambda: grid.delay.__setitem__(12, 500.0))
    grid.at(80, lambda: grid.add(11, ScriptedSite(1)))
    replies = {reply.client: reply for reply in engine.exchange(requests())}
    assert [replies[client].frame for client in (0, 1)] == [b"0", b"1"]
    assert replies[2].outcome is Outcome.FAILED
    assert replies[2].downloads > 1


def test_no_request_is_no_reply(grid):
    """Where nobody is to be asked nobody is waited for."""
    engine, _ = engine_on(grid)
    assert engine.exchange([]) == []


def test_a_message_that_flower_cannot_read_costs_its_sender_alone(grid):
    """Whatever Flower stumbles over: the site is greeted anew and the others are heard."""
    engine, said = engine_on(grid, clients=2)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1))
    push, pull, bad = grid.push_messages, grid.pull_messages, []

    def noting(messages):
        keys = push(messages)
        if messages[0].metadata.message_type == "train.round" and messages[0].metadata.dst_node_id == 10:
            bad.extend(keys if not bad else [])
        return keys

    def stumbling(keys):
        if set(bad) & set(keys):
            raise ValueError("no such chunk")
        return pull(keys)

    grid.push_messages, grid.pull_messages = noting, stumbling
    assert answered(engine.exchange(requests(clients=(0, 1)))) == [(1, 0, b"0"), (1, 1, b"1")]
    assert "node 10 did not answer train.round: its message cannot be read: no such chunk" in said


def test_a_site_that_dies_is_replaced(grid):
    """A node that goes offline is forgotten; the request goes to the node that takes its place."""
    engine, said = engine_on(grid, clients=1)
    grid.add(10, ScriptedSite(0), delay=1e6)
    grid.at(20, lambda: grid.nodes.pop(10))
    grid.at(40, lambda: grid.add(20, ScriptedSite(0)))
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    assert said.count("client 0 is here with 7 samples") == 2
    assert "client 0 is gone" in said


def test_a_silent_site_is_asked_again(grid):
    """A site that was restarted before anyone noticed gets the request once more."""
    engine, _ = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site, delay=1e6)
    grid.at(30, lambda: grid.delay.update({10: 0.0}))
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    assert site.asked == [(1, 0), (1, 0)]


def test_the_engine_says_how_often_a_request_went_out(grid):
    """Once, twice to a site that was silent for long, never to one that was not there: the ledger counts it so."""
    engine, _ = engine_on(grid, quorum=2, deadline=70)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1), delay=45.0)
    first = {reply.client: reply for reply in engine.exchange(requests())}
    assert {client: reply.downloads for client, reply in first.items()} == {0: 1, 1: 2, 2: 0}
    assert first[2].failure == "no reply"
    grid.delay[11] = 0.0
    second = [reply for reply in engine.exchange(requests(round=2)) if reply.round == 2]
    assert {reply.client: reply.downloads for reply in second} == {0: 1, 1: 1, 2: 0}


def test_much_on_a_slow_line_is_not_taken_for_lost(grid):
    """A megabyte that takes half a minute longer than nothing is waited for; sent twice it would take twice as long."""
    engine, _ = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site, delay=35.0)
    engine.exchange(requests(clients=(0,), frame=bytes(2**20)))
    assert site.asked == [(1, 0)]


def test_a_site_is_told_which_round_counted(grid):
    """So that it knows what of its memory to trust."""
    engine, _ = engine_on(grid, accepted={0: 4, 1: 0}.get, clients=2)
    sites = [ScriptedSite(0), ScriptedSite(1)]
    for node, site in enumerate(sites):
        grid.add(node + 10, site)
    engine.exchange(requests(round=5, clients=(0, 1)))
    assert [site.asked for site in sites] == [[(5, 4)], [(5, 0)]]


def test_a_site_that_forgot_shakes_hands_again(grid):
    """A site that lost its disk says it is a stranger, is greeted, and does its part."""
    engine, said = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site)
    engine.exchange(requests(clients=(0,)))
    site.knows = False
    assert answered(engine.exchange(requests(round=2, clients=(0,)))) == [(2, 0, b"0")]
    assert said.count("client 0 is here with 7 samples") == 2


@pytest.mark.parametrize(
    ("fit", "why"),
    [
        ({"backbone": "00" * 32}, "backbone is 000000000000 at client 1, the federation has cdcdcdcdcdcd"),
        ({"layout": "00" * 16}, "layout is 000000000000"),
        ({"codec": "int8"}, "codec is int8"),
        ({"recipe": "00" * 16}, "recipe is 000000000000"),
        ({"version": "9.9"}, "fedadapt is 9.9"),
        ({"client": 3}, "client number 3 is not from 0 to 2"),
        ({"problem": "class 'cow' is not known"}, "class 'cow' is not known"),
    ],
)
def test_what_does_not_fit_is_refused(grid, fit, why):
    """With one line that says why; the others go on."""
    engine, said = engine_on(grid, deadline=20)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1, fit=fit))
    assert answered(engine.exchange(requests(clients=(0, 1)))) == [(1, 0, b"0")]
    assert any(line.startswith(f"node 11 is refused: {why}") for line in said), said


def test_numbers_come_from_the_server(grid):
    """With node keys a node has the number of its key, whatever it calls itself; others have none."""
    engine, said = engine_on(grid, deadline=20, numbers={10: 2, 11: 1})
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(0, fit={"client": 2}))
    grid.add(12, ScriptedSite(1))
    assert answered(engine.exchange(requests(clients=(1, 2)))) == [(1, 2, b"2")]
    assert "node 12 is none of the sites of this run; refused" in said
    assert any("calls itself client 2, but is client 1" in line for line in said)


def test_a_backbone_goes_in_pieces(grid):
    """A site that lacks the backbone gets it from where it stopped, then shakes hands."""
    engine, _ = engine_on(grid, clients=1)
    site = ScriptedSite(0, missing=True)
    site.pieces.append(bytes(4))
    grid.add(10, site)
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    assert [len(piece) for piece in site.pieces] == [4, PIECE_BYTES, 6]


def test_a_server_that_is_gone_is_an_error(grid):
    """Whoever watches the run starts it again."""
    engine, _ = engine_on(grid)
    grid.broken = True
    with pytest.raises(EngineError, match="does not answer"):
        engine.exchange(requests())


@pytest.mark.parametrize("text", [None, "{", '{"round": -1, "client": 0}', "x" * (2 * 2**20 + 1)])
def test_malformed_answers_are_failures(grid, text):
    """What is no answer is a failed reply, and nothing worse."""
    engine, _ = engine_on(grid, clients=2)
    grid.add(10, ScriptedSite(0))
    push = grid.push_messages

    def twisted(messages):
        (message,) = messages
        (key,) = push(messages)
        if (message.metadata.message_type, message.metadata.dst_node_id) == ("train.round", 10):
            when, reply = grid.replies[key]
            if text is None:
                del reply.content["about"]
            else:
                reply.content["about"]["json"] = text
            grid.replies[key] = (when, reply)
        return [key]

    grid.push_messages = twisted
    grid.add(11, ScriptedSite(1))
    bad, good = sorted(engine.exchange(requests(clients=(0, 1))), key=lambda reply: reply.client)
    assert bad.failure.startswith("Answer ")
    assert good.frame == b"1"


def test_a_greeting_that_is_lost_is_said_again(grid):
    """A site that is restarted with our hello in its hands is not forgotten, although it never looked gone."""
    engine, said = engine_on(grid, clients=1)
    grid.add(10, ScriptedSite(0))
    push, sent = grid.push_messages, []

    def losing(messages):
        keys = push(messages)
        sent.append((grid.now, messages[0].metadata.message_type))
        if len(sent) <= 2:
            del grid.replies[keys[0]]
        return keys

    grid.push_messages = losing
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    assert [kind for _, kind in sent] == ["query.hello"] * 3 + ["train.round"]
    assert [when for when, _ in sent[:3]] == pytest.approx([0, 30, 90], abs=2)
    assert said.count("client 0 is here with 7 samples") == 1


def test_a_site_at_work_is_asked_ever_more_seldom(grid):
    """Each repetition costs it an upload, so in an hour there are seven, not sixty."""
    engine, _ = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site, delay=3600.0)
    engine.exchange(requests(clients=(0,)))
    assert len(site.asked) == 7


def test_a_node_that_fails_is_greeted_after_a_pause(grid):
    """A site whose app is broken does not fill the log of the server, and is let in once it is mended."""
    engine, said = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site)
    good = grid.nodes[10]

    def broken(message, context):
        return Message(Error(code=0, reason="ImportError\nno torch"), reply_to=message)

    grid.nodes[10] = (broken, site)
    grid.at(100, lambda: grid.nodes.update({10: good}))
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    failures = [
        line for line in said if line.startswith("node 10 did not answer query.hello: ImportError no")
    ]
    assert 5 <= len(failures) <= 8


def test_half_a_message_holds_up_nobody_else(grid, monkeypatch):
    """Flower waits for the rest of it in vain: the round closes at its deadline, and the next one hears it out."""
    monkeypatch.setattr("fedadapt.engines.flower.pull.PATIENCE_S", 0.2)
    engine, _ = engine_on(grid, deadline=20, clients=2)
    grid.add(10, ScriptedSite(0))
    grid.add(11, ScriptedSite(1))
    pull, whole = grid.pull_messages, threading.Event()

    def waiting(keys):
        (key,) = keys
        reply = grid.replies.get(key, (0, None))[1]
        if reply and "train" in reply.metadata.message_type and reply.metadata.src_node_id == 10:
            assert whole.wait(60)
        return pull(keys)

    grid.pull_messages = waiting
    assert answered(engine.exchange(requests(clients=(0, 1)))) == [(1, 1, b"1")]
    assert 20 < grid.now < 25

    def end():
        whole.set()
        for sent in engine._out.values():
            if sent.pull:
                sent.pull._thread.join()

    grid.at(30, end)
    came = answered(engine.exchange(requests(round=2, clients=(0, 1))))
    assert came == [(1, 0, b"0"), (2, 0, b"0"), (2, 1, b"1")]


def test_a_node_that_fails_at_rounds_alone_is_asked_ever_more_seldom(grid):
    """It answers every greeting between; what it says of its failure is cut, so that it cannot fill the server's disk."""
    engine, said = engine_on(grid, clients=1)
    site = ScriptedSite(0)
    grid.add(10, site)
    good, _ = grid.nodes[10]
    reason, pauses = "no room\x1b\n" * 10**5, []

    def broken(message, context):
        if message.metadata.message_type != "train.round":
            return good(message, context)
        pauses.append(grid.now)
        return Message(Error(code=0, reason=reason), reply_to=message)

    grid.nodes[10] = (broken, site)
    grid.at(600, lambda: grid.nodes.update({10: (good, site)}))
    (reply,) = engine.exchange(requests(clients=(0,)))
    assert (reply.frame, reply.downloads) == (b"0", len(pauses) + 1)
    assert 10 <= len(pauses) <= 20
    failures = [line for line in said if "did not answer train.round: no room" in line]
    assert len(failures) == len(pauses)
    assert max(map(len, failures)) < 600
    assert failures[0].isprintable()


def test_the_pause_ends_however_often_a_node_has_failed(grid):
    """After more failures in a row than powers of two fit a float."""
    engine, _ = engine_on(grid, clients=1)
    engine._sites.failures[10] = 1023
    site = ScriptedSite(0)
    grid.add(10, site)
    good, _ = grid.nodes[10]

    def broken(message, context):
        if message.metadata.message_type != "train.round":
            return good(message, context)
        grid.nodes[10] = (good, site)
        return Message(Error(code=0, reason="once more"), reply_to=message)

    grid.nodes[10] = (broken, site)
    (reply,) = engine.exchange(requests(clients=(0,)))
    assert reply.frame == b"0"


def test_an_array_with_a_long_name_is_a_short_failure(grid):
    """Why an update is refused goes into the run's record, and the name is the sender's."""
    engine, _ = engine_on(grid, clients=2)

    def named(message, context, call_next):
        answer = call_next(message, context)
        if message.metadata.message_type == "train.round":
            answer.content["frame"]["frame"] = Array("uint8", (1,), "x" * 10**6, b"0")
        return answer

    grid.add(10, ScriptedSite(0), mods=[named])
    grid.add(11, ScriptedSite(1))
    bad, good = sorted(engine.exchange(requests(clients=(0, 1))), key=lambda reply: reply.client)
    assert bad.failure.startswith("message holds an array of 'xxx")
    assert len(bad.failure) < 200
    assert good.frame == b"1"


def test_a_refused_site_that_was_mended_is_let_in(grid):
    """It need not have been seen to go, and while it does not fit the log says so once."""
    engine, said = engine_on(grid, clients=1)
    site = ScriptedSite(0, fit={"codec": "int8"})
    grid.add(10, site)
    grid.at(200, site.fit.clear)
    assert answered(engine.exchange(requests(clients=(0,)))) == [(1, 0, b"0")]
    assert sum("is refused" in line for line in said) == 1
    assert 200 <= grid.now < 245


def test_flowers_mods_see_the_frames(grid, caplog):
    """Flower's own and a user's, in their order, around handshakes and rounds; the frame passes through them whole."""
    seen = []

    def watch(message, context, call_next):
        answer = call_next(message, context)
        seen.append((message.metadata.message_type, len(answer.content.array_records)))
        return answer

    engine, _ = engine_on(grid, clients=1)
    grid.add(10, ScriptedSite(0), mods=[message_size_mod, arrays_size_mod, watch])
    with caplog.at_level("INFO", "flwr"):
        assert answered(engine.exchange(requests(clients=(0,), frame=b"12345"))) == [(1, 0, b"0")]
    assert seen == [("query.hello", 0), ("train.round", 1)]
    told = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    sizes = [line for line in told if "message size" in line]
    assert [line.split()[0] for line in sizes] == ["Incoming", "Outgoing"] * 2
    assert "{'frame': {'elements': 5, 'bytes': " in next(line for line in told if line.startswith("{"))
    assert told.index(sizes[0]) < next(n for n, line in enumerate(told) if "Total array elements" in line)


def test_a_mod_that_needs_parameters_is_told_apart(grid):
    """Flower's local differential privacy finds none to clip: the site does not get in, and the log says why."""
    engine, said = engine_on(grid, deadline=60)
    grid.add(10, ScriptedSite(0), mods=[LocalDpMod(1.0, 1.0, 1.0, 1e-5)])
    grid.at(50, lambda: grid.add(11, ScriptedSite(1)))
    assert answered(engine.exchange(requests(clients=(0, 1)))) == [(1, 1, b"1")]
    assert "node 10 did not answer query.hello: LocalDpMod expects exactly one ArrayRecord" in "\n".join(said)


def measuring(round=2, clients=(0, 1, 2)):
    """Requests to measure what a round came to that is not on disk yet."""
    return [Request(round, client, b"down", measure=True, accepted=round - 1) for client in clients]


def test_measuring_waits_for_nobody_who_is_not_there(grid):
    """All who are there measure, also without a deadline and however many there are; who failed is not asked again."""
    engine, _ = engine_on(grid, quorum=3)
    assert engine.exchange(measuring()) == [
        Reply(2, client, failure="no reply", outcome=Outcome.ABSENT, downloads=0, measure=True)
        for client in range(3)
    ]
    sites = [ScriptedSite(0), ScriptedSite(1)]
    for number, one in enumerate(sites):
        grid.add(10 + number, one, delay=20.0 * number)
    engine.exchange(requests(clients=(0,)))
    sites[0].broken = True
    found = {reply.client: reply for reply in engine.exchange(measuring())}
    assert (found[1].frame, found[1].measure, found[1].downloads) == (b"1", True, 1)
    assert (found[0].failure, found[2].downloads) == ("no room for it", 0)
    assert [one.measured for one in sites] == [1, 1]
    assert sites[1].asked == [(2, 1)]


def test_a_late_measure_is_no_update(grid):
    """What was asked for the same round and another end is not taken for one another."""
    engine, _ = engine_on(grid, deadline=10)
    grid.add(10, ScriptedSite(0), delay=15.0)
    grid.add(11, ScriptedSite(1))
    engine.exchange(requests(clients=(1,)))
    first = engine.exchange(measuring(clients=(0, 1)))
    assert {reply.client: reply.outcome for reply in first if not reply.frame} == {0: Outcome.ABSENT}
    second = engine.exchange(requests(round=2, clients=(0, 1)))
    third = engine.exchange(requests(round=3, clients=(0, 1)))
    late = [[(r.round, r.measure) for r in found if r.client == 0 and r.frame] for found in (second, third)]
    assert late == [[(2, True)], [(2, False)]]


def test_the_log_says_whom_a_round_waits_for(grid):
    """After a minute, and then ever more seldom: who is not there, who is at work, and who failed."""
    engine, said = engine_on(grid, clients=15, quorum=15)
    grid.add(10, ScriptedSite(0), delay=500.0)
    grid.add(11, broken := ScriptedSite(1))
    broken.broken = True
    grid.at(450, lambda: setattr(broken, "broken", False))
    grid.at(400, lambda: [grid.add(10 + n, ScriptedSite(n)) for n in range(2, 15)])
    engine.exchange(requests(clients=range(15)))
    waits = [line for line in said if "waits for" in line]
    absent = "clients 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more (not here)"
    assert waits[:3] == [f"round 1: waits for client 0 (at work); {absent}; client 1 (failed)"] * 3
    assert waits[3:] == ["round 1: waits for client 0 (at work); client 1 (failed)"]
