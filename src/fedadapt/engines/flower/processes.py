"""Flower's own processes: started with sane settings, watched, and started again when they die."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedadapt.errors import EngineError, one_line
from fedadapt.files import from_json

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

EXECUTOR = b"flower-superexec"
"""What starts the apps, beside a SuperLink and beside a SuperNode; neither notices when it dies."""

GIVEN_UP = (
    b"Giving up reconnection",
    b"SSL/TLS handshake error detected",
    b":     Client error '",
    b":     Server error '",
    b"Exception in thread",
)
"""What a SuperNode says when its work has ended: its connection was cut in the middle of a handshake, the server answered
a request in a way that it does not know to repeat, or its heart stopped. Another thread of it goes on, and so does the
process."""

HOME, FAILURE = "flower", "failure"
"""Flower's folder in a run's directory, and the file in it by which a server app says that it is no use to start
it again, and why."""

_DEATH_SIGNAL = 1
"""Linux: the `prctl` by which a child asks to be told that its parent died."""

_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "NO_COLOR": "1",
}

_BUNDLE = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedadapt-federation"
version = "1.0.0"
description = "fedadapt on Flower: two apps that are installed on every party already"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedadapt"

[tool.flwr.app.components]
serverapp = "federation.server:app"
clientapp = "federation.site:app"

[tool.flwr.app.config]
run = {run}
""",
    "federation/__init__.py": "",
    "federation/server.py": 'from fedadapt.experiment.server_app import app\n\n__all__ = ["app"]\n',
    "federation/site.py": (
        "from fedadapt.engines.flower.client_app import make_client_app, nearest_desk\n\n"
        'app = make_client_app(nearest_desk("fedadapt.experiment.worker:open_desk"))\n'
    ),
}
"""What Flower carries to every node: no code but the names of ours."""


def program(name: str) -> str:
    """The path of one of Flower's commands.

    Raises:
        EngineError: it is not installed.
    """
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise EngineError(f"command {name} is not installed; install: pip install 'fedadapt[flower]'")
    return found


def environment(home: Path) -> dict[str, str]:
    """What Flower's processes get to see; `home` is where they keep their files."""
    own = {
        "FLWR_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return {**os.environ, **_SETTINGS, **own}


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listening(port: int) -> bool:
    """Whether somebody listens on a port of the loopback interface."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def write_bundle(folder: Path, run: Path) -> Path:
    """Writes the app that `flwr run` takes, for a run that was begun, and returns where it is."""
    for name, text in _BUNDLE.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{run}", json.dumps(str(run.absolute()))), encoding="utf-8")
    return folder


class Child:
    """A process and all that it starts; they end together, at the latest with this process.

    Args:
        command: program and arguments.
        home: Flower's folder.
        log: where its output goes.
        needs: a program that it starts once and does not miss, without which it is of no use.
        farewells: what it may say last, although it lives on.
    """

    LOOK_S = 2.0

    def __init__(
        self, command: list[str], home: Path, log: Path, needs: bytes = b"", farewells: tuple[bytes, ...] = ()
    ) -> None:
        self._command = command
        self._home = home
        self._log = log
        self._needs = needs
        self._farewells, self._heard_from = farewells, 0
        self._looked, self._seen, self._lost = 0.0, False, False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, has not taken its leave, and what it needs runs too."""
        runs = self._process is not None and self._process.poll() is None
        return runs and not self._lacks() and not self._left()

    def _left(self) -> bool:
        """Whether it has said its last, in what is new in its log since it was started."""
        if not self._farewells:
            return False
        try:
            with self._log.open("rb") as log:
                log.seek(self._heard_from)
                new = log.read()
        except OSError:
            return False
        # The farewell may be half written; lines are heard once they are whole.
        said, whole, _ = new.rpartition(b"\n")
        if any(farewell in said for farewell in self._farewells):
            return True
        self._heard_from += len(said + whole)
        return False

    def _lacks(self) -> bool:
        """Whether what it needs was there and is gone; looked up now and then."""
        if self._needs and self._process and time.monotonic() - self._looked > self.LOOK_S:
            self._looked = time.monotonic()
            there, was = _has_child(self._process.pid, self._needs)
            self._seen = self._seen or was
            self._lost = self._seen and not there
        return self._lost

    @property
    def pid(self) -> int | None:
        """Its number, if it was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts it, after whatever is left of an earlier one has been stopped."""
        self.stop()
        self._looked, self._seen, self._lost = 0.0, False, False
        with self._log.open("ab") as log:
            self._heard_from = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self._home),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads take part: it only calls prctl
            )

    def stop(self) -> None:
        """Asks the whole group to end, and ends it if it does not."""
        if self._process is None:
            return
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        self._process = None

    def last_words(self) -> str:
        """The last thing it said; where it said that something is an error, that and what follows."""
        with suppress(OSError):
            text = _COLOUR.sub("", self._log.read_text(errors="replace")[-20_000:])
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            errors = [place for place, line in enumerate(lines) if line.startswith("ERROR")]
            return one_line(" ".join(lines[errors[-1] :][:3] if errors else lines[-1:]))
        return ""


def _has_child(parent: int, name: bytes) -> tuple[bool, bool]:
    """Whether a program that a process started runs; and whether it does, or has ended and nobody has asked how."""
    runs = ended = False
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, ValueError):
            before, _, after = (folder / "stat").read_bytes().rpartition(b")")
            state, started_by, *_ = after.split()
            if int(started_by) != parent:
                continue
            if state == b"Z":
                # Its command line is gone. Of its name, Linux keeps 15 characters.
                ended = ended or before.partition(b"(")[2] == name[:15]
            else:
                runs = runs or name in (folder / "cmdline").read_bytes()
    return runs, runs or ended


def flwr(home: Path, *arguments: str) -> dict[str, Any]:
    """Runs one of Flower's operator commands and returns its JSON.

    Raises:
        EngineError: it failed.
    """
    try:
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"],
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"flwr {arguments[0]} did not end in {error.timeout:.0f} s") from error
    with suppress(ValueError):
        said: dict[str, Any] = from_json(done.stdout[done.stdout.find("{") :])
        if said.get("success"):
            return said
        raise EngineError(f"flwr {arguments[0]} failed: {said.get('error-message') or said}")
    problem = (done.stderr or done.stdout).strip().splitlines()
    raise EngineError(
        f"flwr {arguments[0]} failed: {problem[-1] if problem else f'exit code {done.returncode}'}"
    )


def wait_for(port: int, child: Child, patience_s: float = 180.0) -> None:
    """Waits until a child listens; on a busy machine Flower takes a minute to load.

    Raises:
        EngineError: it ended, or does not listen in time.
    """
    until = time.monotonic() + patience_s
    while not listening(port):
        if not child.alive or time.monotonic() > until:
            raise EngineError(f"Flower's process did not start: {child.last_words() or 'it said nothing'}")
        time.sleep(0.2)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
