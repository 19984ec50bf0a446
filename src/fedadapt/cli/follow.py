"""Lines of a growing file, as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def follow(file: Path, say: Callable[[str], None], every_s: float = 0.5) -> Iterator[None]:
    """Gives `say` every line that is added to `file` while the context is open; the file need not be there yet."""
    stop = threading.Event()
    position = file.stat().st_size if file.exists() else 0

    def look() -> None:
        nonlocal position
        if not file.exists():
            return
        with file.open("rb") as opened:
            opened.seek(position)
            text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        position += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            say(line)

    def keep_looking() -> None:
        while not stop.wait(every_s):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
