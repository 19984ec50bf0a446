"""The log of a run that a server leads: a file of lines, each with the time it was written."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from fedadapt.errors import one_line

LOG = "server.log"

_TAIL_BYTES = 16 * 1024


def say(folder: Path, line: str) -> None:
    """Adds a line to the log of a run directory; what sites said in it can neither add lines nor hide others."""
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{stamp} {one_line(line)}\n")


def last_lines(folder: Path, count: int) -> tuple[str, ...]:
    """The last `count` lines of the log of a run directory; none if it has none, as that of a simulation."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(one_line(line) for line in text.splitlines()[-count:])
