"""Flower's app of a server around ours: it carries, and knows nothing of what is carried."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedadapt.engines.flower import require_flower
from fedadapt.engines.flower.engine import FlowerEngine
from fedadapt.engines.flower.mandate import Mandate
from fedadapt.engines.flower.processes import FAILURE, HOME
from fedadapt.errors import EngineError, FedadaptError, RunInUse
from fedadapt.files import write_whole

LOOK_S = 0.5

PARENT = os.getppid()
"""Who started this process; looked up before all else, for it may be gone by the time the app begins."""


class LeadRun(Protocol):
    """Plays the rounds that a run still lacks, over the engine that `connect` makes."""

    def __call__(self, run: Path, connect: Callable[[Mandate], FlowerEngine]) -> None: ...


def make_server_app(lead: LeadRun) -> ServerApp:
    """The app of a server. The run's directory is in Flower's run configuration, under ``run``."""
    require_flower()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _end_with_parent()
        run = Path(str(context.run_config["run"]))
        try:
            lead(run, lambda mandate: FlowerEngine(grid, mandate))
        except (EngineError, RunInUse):
            raise
        except FedadaptError as error:
            # Whoever watches this run would start it again; this says that it would be no use. Nobody watches one that
            # was prepared for somebody else's SuperLink.
            if (run / HOME).is_dir():
                write_whole(run / HOME / FAILURE, str(error).encode())
            raise

    return app


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone.

    Without its SuperLink it would try to reach it for ever, and keep the run's lock from the app that is started in
    its place. Nothing is lost: what was committed is on disk.
    """

    def watch() -> None:
        while os.getppid() == PARENT:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
