"""The numbers of a run in the form that Prometheus reads, taken from the run directory at every scrape.

Only this module knows prometheus-client, and only inside its functions: it is an extra.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedadapt.errors import ConfigError, RunError
from fedadapt.report.gather import Condition, RunReader, RunSummary
from fedadapt.runs.records import Outcome

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOPBACK = "127.0.0.1"


@contextmanager
def exposed(path: Path, port: int, host: str = LOOPBACK) -> Iterator[int]:
    """Answers scrapes of a run's numbers while the context is open.

    What is told are counts, measures, the run's name, and names of groups and outcomes; no settings, no paths,
    nothing that a site said.

    Args:
        path: the run directory; it need not be there yet.
        port: where to listen; 0 takes a free one.
        host: the interface.

    Yields:
        The port.

    Raises:
        ConfigError: prometheus-client is not installed, or it cannot listen there.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError as error:
        raise ConfigError(
            "metrics need prometheus-client; install: pip install 'fedadapt[metrics]'"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(path))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); give another --metrics-port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RunCollector:
    """What prometheus-client asks for the metrics of a run.

    Args:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RunReader(path)
        self._turn = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now; only ``fedadapt_readable`` if the run cannot be read."""
        from prometheus_client.core import GaugeMetricFamily

        try:
            with self._turn:
                run = self._reader.look()
        except RunError:
            run = None
        yield GaugeMetricFamily(
            "fedadapt_readable", "1 if the run has a committed round that can be read.", int(run is not None)
        )
        if run is not None:
            yield from _metrics(run)


def _metrics(run: RunSummary) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    single: list[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, float | None]] = [
        (gauge, "running", "1 while a process goes on with the run.", run.condition is Condition.RUNNING),
        (gauge, "planned_rounds", "Rounds that the run shall have.", run.planned_rounds),
        (counter, "rounds", "Rounds committed.", run.rounds),
        (counter, "round_seconds", "Seconds over all rounds.", run.wall_s),
        (gauge, "last_round_seconds", "Seconds of the last round.", run.seconds_by_round[run.rounds]),
        (gauge, "accuracy_ratio", "Accuracy, 0 to 1, as last measured.", run.accuracy),
        (gauge, "loss", "Loss, as last measured.", run.loss),
    ]
    for kind, name, text, value in single:
        if value is not None:
            family = kind(f"fedadapt_{name}", text, labels=["run"])
            family.add_metric([run.name], value)
            yield family
    moved = CounterMetricFamily(
        "fedadapt_moved_bytes",
        "Bytes of frames, as they left the senders.",
        labels=["run", "direction", "group"],
    )
    for (direction, group), num_bytes in sorted(run.group_bytes.items()):
        moved.add_metric([run.name, direction, group], num_bytes)
    yield moved
    answers = CounterMetricFamily(
        "fedadapt_clients", "Clients asked, by what became of their answer.", labels=["run", "outcome"]
    )
    for outcome in Outcome:
        answers.add_metric([run.name, outcome], run.outcomes.get(outcome, 0))
    yield answers
