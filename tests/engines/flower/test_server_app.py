"""The server's app ends with what started it."""

import subprocess
import sys
import time
from pathlib import Path

ORPHAN = """
import time
from fedadapt.engines.flower.server_app import _end_with_parent
_end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "ready\\n"
print(child.pid, flush=True)
"""


def test_an_app_does_not_outlive_what_started_it():
    """It would wait for its SuperLink for ever, with the run's lock in its hands."""
    said = subprocess.run([sys.executable, "-c", PARENT, ORPHAN], check=True, capture_output=True, text=True)
    until = time.monotonic() + 60
    while _lives(Path("/proc", said.stdout.strip())):
        assert time.monotonic() < until
        time.sleep(0.1)


def _lives(folder):
    try:
        return ") Z " not in (folder / "stat").read_text()
    except OSError:
        return False
