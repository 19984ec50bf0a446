"""A server's processes: the SuperLink behind the gate, and the run that is submitted to it until it is complete."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedadapt.engines.flower.gate import Gate, GateServer
from fedadapt.engines.flower.processes import (
    EXECUTOR,
    FAILURE,
    HOME,
    Child,
    flwr,
    free_port,
    program,
    wait_for,
    write_bundle,
)
from fedadapt.errors import ConfigError, EngineError
from fedadapt.files import write_whole
from fedadapt.runs.lock import acquire, is_held

START_S = 120.0
"""How long a submitted run may take until it has the lock of its directory."""

GRACE_S = 60.0
"""For a run to begin whose submission failed to say so."""

IN_USE = "already in use"
"""What Flower says of a key that it knows."""

TRIES = 5
"""Submissions in a row that may end without a new round."""


@dataclass(frozen=True)
class Address:
    """Where a server is open to its sites.

    Args:
        host: an interface.
        port: likewise.
        certificate: PEM file, with `key`; None for no TLS.
        key: likewise.
    """

    host: str
    port: int
    certificate: Path | None
    key: Path | None


LITTLE_ROOM = 2**24
"""Bytes on a disk so full that it may be why a run does not go on; who stops for it cannot write down why."""


class FlowerServer:
    """Keeps a federation's run going until it is complete.

    Args:
        run: the run directory.
        address: where to listen.
        keys: public keys of the sites by client number; empty without node authentication.
        rounds: ``() -> (done, wanted)``, read from the run directory.
        numbers: told which node is which client.
        say: told one line at a time.
    """

    def __init__(
        self,
        run: Path,
        address: Address,
        keys: Mapping[int, Path],
        rounds: Callable[[], tuple[int, int]],
        numbers: Callable[[Mapping[int, int]], None],
        say: Callable[[str], None],
    ) -> None:
        self._run = run.absolute()
        self._home = self._run / HOME
        self._address = address
        self._keys = keys
        self._rounds = rounds
        self._numbers = numbers
        self._say = say
        self._port = free_port()
        self._submitted: list[str] = []
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._inner = self._home / "inner.pem" if address.certificate else None
        self._link = Child(self._link_command(), self._home, self._home / "superlink.log", EXECUTOR)

    def keep_going(self) -> None:
        """Returns when the run has all its rounds.

        Raises:
            EngineError: it cannot be brought to go on.
            RunInUse: another process serves the run.
        """
        lock = acquire(self._home)
        try:
            if self._inner:
                _write_certificate(self._inner)
            write_bundle(self._home / "app", self._run)
            self._write_connection()
            (self._home / FAILURE).unlink(missing_ok=True)
            trust = ssl.create_default_context(cafile=str(self._inner)) if self._inner else None
            scheme = "https" if self._inner else "http"
            self._start_link()
            self._register()
            gate = Gate(f"{scheme}://127.0.0.1:{self._port}", trust)
            address = self._address
            with GateServer(gate, address.host, address.port, address.certificate, address.key):
                self._say(f"open to sites on {address.host}:{address.port}")
                self._watch()
            self._note_traffic()
        finally:
            self._link.stop()
            os.close(lock)

    def _watch(self) -> None:
        best, tries = self._rounds()[0], 0
        while self._rounds()[0] < self._rounds()[1]:
            if tries == TRIES:
                free = shutil.disk_usage(self._home).free
                full = f", and its disk has only {free:,} bytes left" if free < LITTLE_ROOM else ""
                raise EngineError(
                    f"the run does not go on after {TRIES} tries{full}; see {self._home}/superlink.log"
                )
            if not self._link.alive:
                self._say("Flower's SuperLink ended; starting it again")
                self._start_link()
            if self._submit():
                self._wait_while_led()
            done, wanted = self._rounds()
            best, tries = (done, 0) if done > best else (best, tries + 1)
            failure = self._home / FAILURE
            if done < wanted and failure.exists():
                raise EngineError(failure.read_text(encoding="utf-8"))

    def _wait_while_led(self) -> None:
        """Returns when the run is complete, or nobody plays it any more."""
        since, seen = time.monotonic(), False
        while self._rounds()[0] < self._rounds()[1]:
            if not self._link.alive:
                return
            led = is_held(self._run)
            if seen and not led:
                return
            if not seen and not led and time.monotonic() - since > START_S:
                self._say("the server app did not start; submitting it again")
                return
            seen = seen or led
            time.sleep(0.5)

    def _submit(self) -> bool:
        """Whether the run was submitted; Flower may fail at it in passing."""
        if self._submitted:
            # It may have ended by itself; what matters is that there are never two.
            with suppress(EngineError):
                flwr(self._home, "stop", self._submitted[-1], "here")
        self._wait_until_free()
        try:
            said = flwr(self._home, "run", str(self._home / "app"), "here")
        except EngineError as error:
            # It may have been submitted all the same, and the app be on its way to the run's lock.
            until = time.monotonic() + GRACE_S
            while time.monotonic() < until and self._link.alive:
                if is_held(self._run):
                    return True
                time.sleep(0.5)
            self._say(f"{error}; submitting it again")
            return False
        self._submitted.append(str(said["run-id"]))
        return True

    def _wait_until_free(self) -> None:
        """A server app of before may take a moment to notice that its SuperLink is gone."""
        until = time.monotonic() + START_S
        while is_held(self._run):
            if time.monotonic() > until:
                raise EngineError(
                    f"another process has kept the run {self._run} for {START_S:.0f} s; stop it"
                )
            time.sleep(0.5)

    def _start_link(self) -> None:
        self._link.start()
        wait_for(self._port, self._link)

    def _link_command(self) -> list[str]:
        command = [
            program("flower-superlink"),
            "--host=127.0.0.1",
            f"--port={self._port}",
            f"--database={self._home / 'superlink.sqlite'}",
            "--disable-runtime-dependency-installation",
        ]
        if self._inner is None:
            return [*command, "--insecure"]
        key = self._inner.with_suffix(".key")
        command += [
            f"--ssl-ca-certfile={self._inner}",
            f"--ssl-certfile={self._inner}",
            f"--ssl-keyfile={key}",
        ]
        return [*command, "--enable-supernode-auth"] if self._keys else command

    def _write_connection(self) -> None:
        trust = f"root-certificates = {json.dumps(str(self._inner))}" if self._inner else "insecure = true"
        text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self._port}"\n{trust}\n'
        (self._home / "config.toml").write_text(text, encoding="utf-8")

    def _register(self) -> None:
        """Makes the sites' keys known to Flower, each once, and notes which node belongs to which client."""
        if not self._keys:
            return
        record = self._home / "registered.json"
        known: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
        for file in self._keys.values():
            key = read_key(file)
            if key not in known:
                known[key] = self._node_of(file, set(known.values()))
                write_whole(record, json.dumps(known).encode())
        nodes = {int(known[read_key(file)]): client for client, file in self._keys.items()}
        self._numbers(nodes)

    def _node_of(self, key: Path, known: set[str]) -> str:
        """Registers a site's key; of one that Flower knows already it is the node that we do not know."""
        try:
            return str(flwr(self._home, "supernode", "register", str(key), "here")["node-id"])
        except EngineError as error:
            # Keys are written down one by one: at most one can have been registered and not written down.
            nodes = flwr(self._home, "supernode", "list", "here")["nodes"] if IN_USE in str(error) else []
            lost = {str(node["node-id"]) for node in nodes} - known
            if len(lost) != 1:
                raise
            return lost.pop()

    def _note_traffic(self) -> None:
        """Writes down what Flower itself counted."""
        counts = {}
        for run in self._submitted:
            try:
                (found,) = flwr(self._home, "list", "here", "--run-id", run)["runs"]
            except (EngineError, KeyError, ValueError):
                continue
            counts[run] = found.get("network-traffic", {})
        write_whole(self._home / "traffic.json", json.dumps(counts, indent=2).encode())


def read_key(file: Path) -> str:
    """A site's public key: its kind and itself, without the comment that may follow.

    Raises:
        ConfigError: it is none that Flower takes.
    """
    said = file.read_bytes()
    try:
        key = serialization.load_ssh_public_key(said)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{file} is not a public key of a site; take the .pub that ssh-keygen -t ecdsa -b 384 wrote"
        )
    return b" ".join(said.split()[:2]).decode()


def _write_certificate(file: Path) -> None:
    """A certificate of this server for itself, so that nobody else on the machine can pose as the SuperLink."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedadapt server")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = file.with_suffix(".key")
    descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(secret)
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
