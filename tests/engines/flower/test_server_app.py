"""The server's app ends with what started it, and says whether it is any use to start it again."""

import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedadapt.engines.flower import server_app as module
from fedadapt.engines.flower.processes import FAILURE, HOME
from fedadapt.errors import EngineError, RunError, RunInUse

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


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Plays a run whose rounds end with an error; what is written for whoever watches it, if anything."""
    monkeypatch.setattr(module, "_end_with_parent", lambda: None)

    def call(error):
        def lead(run, connect):
            raise error

        context = Context(1, 2, {}, RecordDict(), {"run": str(tmp_path)})
        with pytest.raises(type(error)) as caught:
            module.make_server_app(lead)(Mock(spec=Grid), context)
        assert caught.value is error
        file = tmp_path / HOME / FAILURE
        return file.read_text() if file.exists() else None

    return call


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RunError("run is damaged"), "run is damaged"),
        (EngineError("the SuperLink is gone"), None),
        (RunInUse("directory is in use by process 7"), None),
    ],
)
def test_an_app_says_when_it_is_no_use_to_start_it_again(tmp_path, play, error, told):
    """An app that finds another at work is none that failed: the run goes on."""
    (tmp_path / HOME).mkdir()
    assert play(error) == told


def test_an_app_that_nobody_watches_ends_with_its_own_error(tmp_path, play):
    """A run that `serve --prepare` began has no folder of our server."""
    assert play(RunError("run is damaged")) is None
    assert not list(tmp_path.iterdir())


def _lives(folder):
    try:
        return ") Z " not in (folder / "stat").read_text()
    except OSError:
        return False
