"""The cohort on the actors of a Ray cluster, each with a frozen backbone of its own.

The driver cuts a cohort into chunks and gives one to whichever actor is free. A chunk travels with its frames and
with what its clients keep, and comes back with their uploads and what they keep from then on. An actor therefore
remembers nothing that matters: if it dies, its chunk is given to another one, and nobody can tell from the result.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Annotated, Any

from pydantic import Field

from fedadapt.engines.actor import Actor, Answer, identify
from fedadapt.engines.chunks import ChunkSize, cut
from fedadapt.engines.engine import Blueprint, MakeEngine
from fedadapt.errors import EngineError, FrameError
from fedadapt.federation.messages import EVERYONE, Reply, Request
from fedadapt.federation.serve import Party, take_version
from fedadapt.params import from_bytes, to_bytes
from fedadapt.registry import register

MAX_DEATHS = 3
"""How many actors may die over one chunk, or in one place before they say a word, before the run ends or the place does."""

PATIENCE_S = 300.0
"""How long nobody at all may be ready."""

_PROBE_S = 10.0
_JOINING_S = "RAY_gcs_server_port_wait_time_s"


@dataclass(frozen=True)
class Need:
    """What of a machine each actor takes.

    Args:
        cpus: processors, and threads to use them with.
        gpus: 1, or a share such as 0.25; 0 computes on the processors.
    """

    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """Where an actor computes. The driver measures where ``train.device`` says."""
        return "cuda" if self.gpus else "cpu"

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many actors there is room for on a machine."""
        cpus = int(resources.get("CPU", 0) // self.cpus)
        # Shares of one actor are all on one GPU.
        return min(cpus, int(resources.get("GPU", 0)) * int(1 / self.gpus)) if self.gpus else cpus


@dataclass
class _Chunk:
    """Work to be given out, and how many actors have died over it."""

    requests: Sequence[Request]
    deaths: int = 0


@dataclass
class _Seat:
    """A place for an actor, which another one takes when it dies.

    Args:
        actor: who sits there.
        task: what it does; None if it is free.
        chunk: what for; None while it begins.
        where: known once it is ready.
        deaths: of actors in a row that were not ready yet, or had said nothing in the exchange in which they died.
        heard: whether its actor has said something in this exchange, and so was alive when it was given its chunk.
    """

    actor: Any
    task: Any
    chunk: _Chunk | None = None
    where: str = ""
    deaths: int = 0
    heard: bool = False


class RayEngine:
    """Simulates the clients of a federation on actors of the cluster that this process has joined.

    Args:
        party: the driver's; knows who holds how much, and has the memory of all clients.
        blueprint: what the actors make theirs of.
        need: of each actor.
        actors: how many there shall be; for whom there is no room yet helps once there is.
        chunk: clients trained together; None picks.
    """

    def __init__(
        self, party: Party, blueprint: Blueprint, need: Need, actors: int, chunk: int | None = None
    ) -> None:
        import ray

        self.on_clients: Callable[[int], None] = lambda count: None
        self.cpu_s = 0.0
        self._party, self._blueprint, self._need = party, blueprint, need
        self._actors, self._chunk = actors, chunk
        # Copied once to the shared memory of each machine, where its actors read them in place.
        self._columns = ray.put(dict(blueprint.columns))
        self._seats = [_Seat(*self._start()) for _ in range(actors)]
        # Before the first round, whose time would otherwise hold that of getting ready.
        while not any(seat.where for seat in self._seats):
            self._hear()

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Gives the chunks to the actors, the largest first, and takes in one answer to each.

        Raises:
            EngineError: no actor can be had, one does not fit the driver or fails, or a chunk kills every actor.
        """
        places, shared = self._share(requests)
        chunks = cut(requests, self._party, self._chunk, self._actors)
        waiting = deque(_Chunk(chunk) for chunk in reversed(chunks))
        replies: list[Reply] = []
        for seat in self._seats:
            seat.heard = False
        while len(replies) < len(requests):
            for seat in self._seats:
                if seat.task is None and waiting:
                    seat.chunk = waiting.popleft()
                    seat.task = self._ask(seat.actor, seat.chunk.requests, places, shared)
            chunk, answer = self._hear()
            if answer is not None:
                replies += self._take(answer)
                self.on_clients(len(replies))
            elif chunk is not None:
                waiting.appendleft(chunk)
        return replies

    def close(self) -> None:
        """Ends the actors."""
        import ray

        for seat in self._seats:
            ray.kill(seat.actor)

    def _start(self) -> tuple[Any, Any]:
        """An actor, and the task of getting ready."""
        import ray

        # Ray's own restarts would keep a chunk waiting for the same actor while others are free.
        options = {"num_cpus": self._need.cpus, "num_gpus": self._need.gpus, "max_restarts": 0}
        actor: Any = ray.remote(Actor).options(scheduling_strategy="SPREAD", **options).remote()
        blueprint, need = self._blueprint, self._need
        task = actor.begin.remote(blueprint.make, blueprint.document, self._columns, need.device, need.cpus)
        return actor, task

    def _share(self, requests: Sequence[Request]) -> tuple[dict[int, int], list[Any]]:
        """Puts what many chunks need where all machines find it: at which place each frame is, and all of it."""
        import ray

        frames = {id(request.frame): request for request in requests}
        memory = self._party.memory
        if self._party.wire.delta:
            for request in frames.values():
                # What is wrong with a frame the clients will find and say, as they do in process.
                with suppress(FrameError):
                    take_version(request, self._party)
        held = to_bytes(memory[EVERYONE]) if EVERYONE in memory else b""
        shared = [held, *(request.frame for request in frames.values())]
        return {key: place for place, key in enumerate(frames, start=1)}, [ray.put(one) for one in shared]

    def _ask(
        self, actor: Any, requests: Sequence[Request], places: Mapping[int, int], shared: Sequence[Any]
    ) -> Any:
        memory = self._party.memory
        kept = {r.client: to_bytes(memory[r.client]) for r in requests if r.client in memory}
        asked = [(replace(request, frame=b"", whole=None), places[id(request.frame)]) for request in requests]
        return actor.answer.remote(asked, kept, *shared)

    def _hear(self) -> tuple[_Chunk | None, Answer | None]:
        """Waits for what comes first: an answer and its chunk, a chunk whose actor died, or neither if one is ready."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        tasks = {seat.task: seat for seat in self._seats if seat.task is not None}
        ready = any(seat.where for seat in self._seats)
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=None if ready else PATIENCE_S)
        if not done:
            raise EngineError(
                f"no actor was ready in {PATIENCE_S:.0f} s; each needs {_resources(self._need)}, free are "
                f"{_resources(ray.available_resources())}; wait, add machines, or set engine.cpus or engine.gpus"
            )
        seat = tasks[done[0]]
        chunk, seat.chunk, seat.task = seat.chunk, None, None
        try:
            said = ray.get(done[0])
        except RayTaskError as error:
            raise EngineError(
                f"{seat.where or 'an actor'} failed: {_reason(error.cause or error)}"
            ) from error
        except RayError as error:
            self._refill(seat, chunk, error)
            return chunk, None
        seat.heard = True
        if chunk is None:
            self._welcome(seat, said)
            return None, None
        return chunk, said

    def _welcome(self, seat: _Seat, said: dict[str, str]) -> None:
        seat.where, seat.deaths = said.pop("where"), 0
        for what, ours in identify(self._party).items():
            if said[what] != ours:
                raise EngineError(
                    f"{seat.where} has {what} {said[what]}, this process {ours}; have the same on all machines"
                )

    def _take(self, answer: Answer) -> list[Reply]:
        for client, kept in answer.memory.items():
            self._party.memory[client] = from_bytes(kept)
        self.cpu_s += answer.cpu_s
        return answer.replies

    def _refill(self, seat: _Seat, chunk: _Chunk | None, error: Exception) -> None:
        """Has another actor take the place of one that died; its chunk is waiting again."""
        import ray

        # It may be alive and only out of reach: nothing that it still says is heard.
        ray.kill(seat.actor)
        # An actor that has sat idle since an earlier round may have died there, and not over its chunk.
        lost = chunk if chunk is not None and seat.heard else seat
        lost.deaths += 1
        if lost.deaths < MAX_DEATHS:
            seat.actor, seat.task = self._start()
            seat.where = ""
        elif chunk is not None:
            clients = ", ".join(str(request.client) for request in chunk.requests)
            raise EngineError(
                f"{MAX_DEATHS} actors died over clients {clients}: {_reason(error)}; "
                "if memory ran out, set a smaller engine.chunk"
            )
        else:
            self._seats.remove(seat)
            if not self._seats:
                raise EngineError(f"no actor lived long enough to begin: {_reason(error)}")


@register("engine", "ray")
@contextmanager
def cluster(
    address: str | None = None,
    actors: Annotated[int, Field(ge=1)] | None = None,
    cpus: Annotated[int, Field(ge=1)] = 1,
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0,
    chunk: ChunkSize | None = None,
) -> Iterator[MakeEngine]:
    """Clients on the actors of a Ray cluster.

    Args:
        address: ``HOST:PORT`` of its head, ``auto`` for one on this machine, ``local`` to start one; None takes the
            environment's ``RAY_ADDRESS``, or starts one.
        actors: None for as many as there is room for.
        cpus: processors of each.
        gpus: 1 GPU for each, a share of one, or 0 for none.
        chunk: clients trained together; None picks.

    Raises:
        EngineError: Ray is not installed, or there is no such cluster, or no room on it.
    """
    need = Need(cpus, gpus)
    with _joined(address or os.environ.get("RAY_ADDRESS") or "local", actors, need), ExitStack() as engines:
        room = _room(need)
        yield lambda party, blueprint: engines.enter_context(
            closing(RayEngine(party, blueprint, need, actors or room, chunk))
        )


@contextmanager
def _joined(address: str, actors: int | None, need: Need) -> Iterator[None]:
    """Joins the cluster for as long as the block lasts, or uses the one that this process has joined already."""
    try:
        import ray
    except ImportError:
        raise EngineError(
            "Ray is not installed; install it on every machine with: pip install 'fedadapt[ray]'"
        ) from None
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if address not in (joined, "auto", "local"):
            raise EngineError(
                f"this process has joined the Ray cluster at {joined}, engine.address is {address!r}; "
                "leave it out, or call ray.shutdown() before"
            )
        yield
        return
    how: dict[str, Any] = {}
    if address == "local":
        how = {"num_cpus": None if actors is None else actors * need.cpus, "include_dashboard": False}
    else:
        _look_for(address)
        # Ray would try for a quarter of an hour. Read when a cluster is joined, and not to be left to one that is
        # started later.
        os.environ[_JOINING_S] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **how)
    except Exception as error:  # Ray raises plain ones too, when a machine is slow to start
        raise EngineError(f"cannot join a Ray cluster at {address!r}: {_reason(error)}") from error
    finally:
        os.environ.pop(_JOINING_S, None)
    try:
        yield
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """Refuses an address at which nothing answers."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise EngineError(
            f"engine.address must be HOST:PORT, auto or local, got {address!r}; for instance 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), _PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"nothing answers at engine.address {address!r} ({error}); start a head there with: ray start --head"
        ) from None


def _room(need: Need) -> int:
    """How many actors the machines of the cluster have room for when they do nothing else."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(need.fits(machine) for machine in machines)
    if not room:
        raise EngineError(
            f"no machine of the cluster has {_resources(need)}, which an actor needs; "
            f"there are {'; '.join(map(_resources, machines))}; set engine.cpus or engine.gpus"
        )
    return room


def _resources(what: Need | Mapping[str, float]) -> str:
    cpus, gpus = (
        (what.cpus, what.gpus) if isinstance(what, Need) else (what.get("CPU", 0), what.get("GPU", 0))
    )
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def _reason(error: BaseException) -> str:
    """An error in one line; Ray's own go on for several."""
    return shorten(str(error), 500, placeholder=" ...") or type(error).__name__
