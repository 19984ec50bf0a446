"""A federation leaves no secret where somebody could read it."""

from __future__ import annotations

import pytest
from nodes import SITE, Federation
from tiny import TOML

pytestmark = pytest.mark.flower

RECIPE = TOML.replace("num_clients = 4", "num_clients = 1").replace("rounds = 3", "rounds = 1")


def secrets_of(file):
    """The lines of a private key that nobody else may have."""
    return [
        line for line in file.read_bytes().splitlines() if len(line) > 40 and not line.startswith(b"-----")
    ]


def test_no_key_reaches_a_log_a_report_or_the_run(tmp_path, fedadapt):
    """No line of a private key is in any file but the key's own, which only its owner may read."""
    with Federation(tmp_path, RECIPE, {0: SITE}) as federation:
        federation.serve()
        federation.join(0)
        assert federation.finish() == 0, federation.said("server")
    shown = [
        fedadapt("watch", federation.run, "--once").out,
        fedadapt("watch", federation.run, "--once", "--json").out,
    ]
    assert fedadapt("report", federation.run).code == 0
    inner = federation.run / "flower" / "inner.key"
    keys = [tmp_path / "tls" / "server.key", tmp_path / "tls" / "ca.key", tmp_path / "site0" / "key", inner]
    lines = [line for key in keys for line in secrets_of(key)]
    assert len(lines) >= len(keys)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file not in keys]
    assert {"server.log", "report.html", "run.sqlite", "superlink.log", "supernode.log"} <= {
        file.name for file in files
    }
    for content in (*(file.read_bytes() for file in files), *(text.encode() for text in shown)):
        assert not any(line in content for line in lines)
    assert inner.stat().st_mode & 0o077 == 0
    log = (federation.run / "server.log").read_text()
    assert log.count("round 1 of 1: 1 of 1 clients, accuracy") == 1
