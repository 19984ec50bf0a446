"""What a site keeps of one federation: what it agreed to, and of its last rounds what it was asked, kept and answered."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedadapt.errors import RunInUse
from fedadapt.federation.handshake import TERMS, Terms, parse
from fedadapt.federation.messages import Request
from fedadapt.federation.warm_start import ROUND
from fedadapt.files import write_whole
from fedadapt.params import Streams, from_bytes, to_bytes
from fedadapt.runs.lock import acquire

LOCK_PATIENCE_S = 24 * 3600.0
"""How long a second request for a round waits for the first one, whose answer it then gives."""


class SiteRun:
    """The folder of a federation at a site.

    Args:
        folder: it is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def terms(self) -> Terms | None:
        """What this site agreed to, if it did."""
        file = self.folder / TERMS
        return parse(Terms, file.read_text(encoding="utf-8")) if file.exists() else None

    def agree(self, terms: Terms) -> None:
        """Remembers terms."""
        write_whole(self.folder / TERMS, terms.model_dump_json().encode())

    def answered(self, request: Request, accepted: int) -> bytes | None:
        """The frame that a request was answered with before."""
        file = self._answer(request, accepted)
        return file.read_bytes() if file.exists() else None

    def remembers(self, round: int) -> bool:
        """Whether what was kept after a round is here; it may be nothing."""
        return (self.folder / f"memory-{round}").exists()

    def recall(self, accepted: int) -> dict[int, Streams]:
        """What the site kept after a round, by client; nothing if it was not kept."""
        file = self.folder / f"memory-{accepted}"
        memory: dict[int, Streams] = {}
        if file.exists():
            for name, params in from_bytes(file.read_bytes()).items():
                who, _, stream = name.partition(" ")
                memory.setdefault(int(who), {})[stream] = params
        return memory

    def keep(self, request: Request, accepted: int, memory: Mapping[int, Streams], frame: bytes) -> None:
        """Writes down a round before its answer leaves, and removes what no request can ask for any more.

        Args:
            request: what was asked.
            accepted: the last round that counted when it was.
            memory: what the site keeps after it.
            frame: the answer.
        """
        kept = {f"{who} {stream}": params for who, own in memory.items() for stream, params in own.items()}
        said = self._answer(request, accepted)
        write_whole(self.folder / f"memory-{request.round}", to_bytes(kept))
        if request.round != ROUND:
            # Before the first round there is no model to remember.
            self.take(request, request.round)
        write_whole(said, frame)
        self._remove("memory-*", {f"memory-{round}" for round in (accepted, request.round)})
        self._remove("answer-*", {said.name})

    def measured(self, request: Request, accepted: int, frame: bytes) -> None:
        """Writes down the answer to a request to measure before it leaves, and the model that came with it."""
        said = self._answer(request, accepted)
        last = self.last()
        if last is None or last[0].round <= request.round:
            # A request that was overtaken brings an older model.
            self.take(request, accepted)
        write_whole(said, frame)
        self._remove("measured-*", {said.name})

    def take(self, request: Request, kept: int) -> None:
        """Writes down the model that a request brought, in the place of the last one.

        Args:
            request: what was asked.
            kept: the round after which the site kept what belongs with it.
        """
        asked = self.folder / f"asked-{request.round}-{request.client}-{kept}"
        write_whole(asked, request.frame)
        self._remove("asked-*", {asked.name})

    def last(self) -> tuple[Request, int] | None:
        """What brought the last model, and after which round the site kept what belongs with it; None before the first."""
        files = {tuple(map(int, file.name.split("-")[1:])): file for file in self._asked()}
        if not files:
            return None
        newest = max(files)
        # An earlier version did not say after which round: it wrote down training alone.
        round, client, kept = (*newest, newest[0])[:3]
        return Request(round, client, files[newest].read_bytes()), kept

    @property
    def taken_at(self) -> float:
        """When the last model came, in seconds since 1970; 0 before the first."""
        return max((file.stat().st_mtime for file in self._asked()), default=0.0)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a site to one answer at a time; the second request waits."""
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                lock = acquire(self.folder)
                break
            except RunInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        try:
            yield
        finally:
            os.close(lock)

    def _remove(self, pattern: str, needed: set[str]) -> None:
        for file in self.folder.glob(pattern):
            if file.name not in needed:
                file.unlink(missing_ok=True)

    def _asked(self) -> Iterator[Path]:
        # None that a death left half written.
        return self.folder.glob("asked-*[0-9]")

    def _answer(self, request: Request, accepted: int) -> Path:
        salt = accepted.to_bytes(8, "little")
        digest = hashlib.blake2b(request.frame, digest_size=8, salt=salt).hexdigest()
        # The model is what the next request to train brings: that is the same frame.
        kind = "measured" if request.measure else "answer"
        return self.folder / f"{kind}-{request.round}-{digest}"
