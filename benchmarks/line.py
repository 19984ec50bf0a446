"""Two hosts on one machine with a slow line between them.

Each host is a network namespace whose only way out is a TUN device; a process of its own carries the packets from
one to the other, paced and delayed. The kernel's netem does the same where it is built in; many small kernels leave
it out, and a packet that waits in a process has waited all the same. Needs root, ``ip`` and ``/dev/net/tun``.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

SERVER, SITES = "fedadapt-server", "fedadapt-sites"
ADDRESSES = {SERVER: "10.77.0.1", SITES: "10.77.0.2"}
DEVICE = "line0"

QUEUE_S = 0.3
"""What a line holds before it drops packets, as seconds of its rate."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass
class Way:
    """One direction of the line.

    Args:
        to: where packets come out.
        rate: bytes a second.
        delay: seconds from the last byte in to the packet out.
    """

    to: int
    rate: float
    delay: float
    free: float = 0.0
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now: float) -> None:
        """Puts a packet on the line, or drops it if too many wait."""
        begin = max(now, self.free)
        if begin - now <= QUEUE_S:
            self.free = begin + len(packet) / self.rate
            self.queue.append((self.free + self.delay, packet))

    def give(self, now: float) -> None:
        """Lets out what has arrived."""
        while self.queue and self.queue[0][0] <= now:
            os.write(self.to, self.queue.popleft()[1])


class Line:
    """The line and its two hosts, while the context is open.

    Args:
        megabits: a second and direction.
        round_trip_s: there and back.
    """

    def __init__(self, megabits: float, round_trip_s: float) -> None:
        self._settings = [str(megabits * 1e6 / 8), str(round_trip_s / 2)]
        self._relay: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._remove()
        ends = []
        for number, (host, address) in enumerate(ADDRESSES.items()):
            end = os.open("/dev/net/tun", os.O_RDWR)
            name = f"line-{number}"
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("netns", "add", host)
            _ip("link", "set", name, "netns", host, "name", DEVICE)
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", host, "link", "set", device, "up")
            ends.append(end)
        self._relay = subprocess.Popen(
            [sys.executable, __file__, *map(str, ends), *self._settings], stdin=subprocess.PIPE, pass_fds=ends
        )
        for end in ends:
            os.close(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            self._relay.communicate()
        self._remove()

    def bytes_out_of(self, host: str) -> int:
        """Bytes of all packets that a host sent since the line is there, with their IP headers."""
        said = _ip("-n", host, "-s", "-j", "link", "show", "dev", DEVICE)
        sent: int = json.loads(said)[0]["stats64"]["tx"]["bytes"]
        return sent

    def _remove(self) -> None:
        for host in ADDRESSES:
            if Path("/run/netns", host).exists():
                _ip("netns", "del", host)


def inside(host: str, command: list[str]) -> list[str]:
    """The command that runs `command` on a host."""
    return ["ip", "netns", "exec", host, *command]


def _ip(*arguments: str) -> str:
    return subprocess.run(
        ["/usr/bin/env", "ip", *arguments], check=True, capture_output=True, text=True
    ).stdout


def relay(one: int, other: int, rate: float, delay: float) -> None:
    """Carries packets between two ends until standard input closes."""
    os.nice(-10)
    ways = {one: Way(other, rate, delay), other: Way(one, rate, delay)}
    selector = selectors.DefaultSelector()
    for end in (*ways, sys.stdin.fileno()):
        selector.register(end, selectors.EVENT_READ)
    while True:
        now = time.monotonic()
        due = [way.queue[0][0] for way in ways.values() if way.queue]
        ready = {key.fd for key, _ in selector.select(max(0.0, min(due) - now) if due else None)}
        if sys.stdin.fileno() in ready:
            return
        now = time.monotonic()
        for end in ready:
            ways[end].take(os.read(end, 65536), now)
        for way in ways.values():
            way.give(now)


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
