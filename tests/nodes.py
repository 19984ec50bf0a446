"""Real federations on loopback: a server and its sites as processes, with certificates and keys of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import fedadapt
from fedadapt.engines.flower.processes import free_port

SITE = """
share = true

[source]
name = "digits"
size = 12
"""

AUTHORITY = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=authority "
    "-keyout {folder}/ca.key -out {folder}/ca.pem"
)
SERVER = (
    (
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server "
        "-keyout {folder}/server.key -out {folder}/server.csr"
    ),
    (
        "openssl x509 -req -in {folder}/server.csr -CA {folder}/ca.pem -CAkey {folder}/ca.key -CAcreateserial "
        "-days 30 -out {folder}/server.pem -extfile {folder}/names"
    ),
)


def make_certificates(folder: Path) -> None:
    """An authority, and a certificate that it signed for the loopback address."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for line in (AUTHORITY, *SERVER):
        subprocess.run(line.format(folder=folder).split(), check=True, capture_output=True)


def make_key(file: Path) -> Path:
    """A site's key pair: ``file`` and ``file.pub``."""
    line = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(file)]
    subprocess.run(line, check=True, capture_output=True)
    return file


class Federation:
    """A server and sites; a context manager that leaves no process behind.

    Args:
        folder: where everything is.
        recipe: the text of the run file.
        sites: the text of each site file, by the client's number.
        secure: with TLS and keys.
    """

    def __init__(
        self, folder: Path, recipe: str, sites: Mapping[int, str] | None = None, *, secure: bool = True
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.secure = secure
        self.recipe = folder / "tiny.toml"
        self.run = folder / "runs" / "tiny"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.sites = sites or dict.fromkeys(range(3), SITE)
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(recipe, encoding="utf-8")
        if secure:
            make_certificates(folder / "tls")
        for client, text in self.sites.items():
            place = folder / f"site{client}"
            place.mkdir()
            number = "" if secure else f"client = {client}\n"
            (place / "site.toml").write_text(number + text, encoding="utf-8")
            if secure:
                make_key(place / "key")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.stop(name)

    def serve(self) -> None:
        """Starts the server, or starts it again."""
        if self.secure:
            tls = self.folder / "tls"
            how = [f"--tls-cert={tls / 'server.pem'}", f"--tls-key={tls / 'server.key'}"]
            how += [f"--site={c}={self.folder / f'site{c}' / 'key.pub'}" for c in self.sites]
        else:
            how = ["--insecure"]
        runs = f"--runs={self.folder / 'runs'}"
        self.start("server", "serve", self.recipe, runs, "--host=127.0.0.1", f"--port={self.port}", *how)

    def join(self, client: int, *how: str, port: int | None = None) -> None:
        """Starts a site, or starts it again; `how` replaces the usual certificate and key, `port` the server's."""
        site = self.folder / f"site{client}" / "site.toml"
        options = how or self.credentials(client)
        self.start(f"site{client}", "join", f"127.0.0.1:{port or self.port}", f"--data={site}", *options)

    def credentials(self, client: int) -> list[str]:
        """How a site usually shows who it is."""
        if not self.secure:
            return ["--insecure"]
        return [f"--ca={self.folder / 'tls' / 'ca.pem'}", f"--key={self.folder / f'site{client}' / 'key'}"]

    def start(self, name: str, *arguments: object) -> None:
        """Starts a ``fedadapt`` process whose output goes to ``NAME.out``."""
        source = Path(fedadapt.__file__).parents[1]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", "from fedadapt.cli import main; main()", *map(str, arguments)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(source)},
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Ends a process by a signal."""
        process = self.processes.pop(name)
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()

    def said(self, name: str) -> str:
        """What a process printed so far."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def wait_until_said(self, name: str, text: str, patience_s: float = 300) -> None:
        """Waits for a line of a process."""
        until = time.monotonic() + patience_s
        while text not in self.said(name):
            if self.processes[name].poll() is not None and text not in self.said(name):
                raise AssertionError(f"{name} ended without {text!r}:\n{self.said(name)}")
            assert time.monotonic() < until, f"{name} did not say {text!r}:\n{self.said(name)}"
            time.sleep(0.2)

    def finish(self, patience_s: float = 500) -> int:
        """Waits for the server to end; its exit code."""
        return self.processes["server"].wait(patience_s)
