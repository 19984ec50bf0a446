"""Flower's app of a server around ours: it carries, and knows nothing of what is carried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedadapt.engines.flower import require_flower
from fedadapt.engines.flower.engine import FlowerEngine
from fedadapt.engines.flower.mandate import Mandate
from fedadapt.engines.flower.processes import FAILURE, HOME
from fedadapt.errors import EngineError, FedadaptError


class LeadRun(Protocol):
    """Plays the rounds that a run still lacks, over the engine that `connect` makes."""

    def __call__(self, run: Path, connect: Callable[[Mandate], FlowerEngine]) -> None: ...


def make_server_app(lead: LeadRun) -> ServerApp:
    """The app of a server. The run's directory is in Flower's run configuration, under ``run``."""
    require_flower()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run = Path(str(context.run_config["run"]))
        try:
            lead(run, lambda mandate: FlowerEngine(grid, mandate))
        except EngineError:
            raise
        except FedadaptError as error:
            # Whoever watches this run would start it again; this says that it would be no use.
            (run / HOME / FAILURE).write_text(str(error), encoding="utf-8")
            raise

    return app
