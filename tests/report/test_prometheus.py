"""The numbers of a run as a scrape gets them."""

from __future__ import annotations

import socket
import urllib.request

import pytest

from fedadapt.errors import ConfigError
from fedadapt.report.prometheus import exposed
from fedadapt.runs.store import RunStore

parser = pytest.importorskip("prometheus_client.parser")


def scrape(port):
    """Every sample of a scrape by its name and labels, as Prometheus reads it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    families = parser.text_string_to_metric_families(text)
    return {
        (
            sample.name,
            *(value for label, value in sorted(sample.labels.items()) if label != "run"),
        ): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_scrape_has_the_numbers_of_the_run(make_run, make_round):
    """Two rounds by hand: bytes by direction and group, answers by outcome, measures and seconds; then a third."""
    path = make_run(accuracies=(0.1, 0.5, 0.75), planned=4)
    with exposed(path, 0) as port:
        assert scrape(port) == {
            ("fedadapt_readable",): 1,
            ("fedadapt_running",): 0,
            ("fedadapt_planned_rounds",): 4,
            ("fedadapt_rounds_total",): 2,
            ("fedadapt_round_seconds_total",): 6,
            ("fedadapt_last_round_seconds",): 2,
            ("fedadapt_accuracy_ratio",): 0.75,
            ("fedadapt_loss",): 0.25,
            ("fedadapt_moved_bytes_total", "download", "adapter"): 1600,
            ("fedadapt_moved_bytes_total", "download", "framing"): 400,
            ("fedadapt_moved_bytes_total", "upload", "adapter"): 800,
            ("fedadapt_moved_bytes_total", "upload", "framing"): 400,
            ("fedadapt_clients_total", "accepted"): 4,
            ("fedadapt_clients_total", "refused"): 0,
            ("fedadapt_clients_total", "failed"): 0,
            ("fedadapt_clients_total", "late"): 0,
            ("fedadapt_clients_total", "absent"): 0,
        }
        with RunStore.open(path) as store:
            store.commit(make_round(3, {}))
            again = scrape(port)
    assert again[("fedadapt_running",)] == 1
    assert again[("fedadapt_rounds_total",)] == 3
    assert again[("fedadapt_accuracy_ratio",)] == 0.75
    assert again[("fedadapt_clients_total", "accepted")] == 6


def test_a_run_that_is_not_there_yet_can_be_scraped(tmp_path):
    """Without a run, and before its first round, a scrape says so and no more."""
    with exposed(tmp_path / "run", 0) as port:
        assert scrape(port) == {("fedadapt_readable",): 0}
        with RunStore.create(tmp_path / "run", {}):
            assert scrape(port) == {("fedadapt_readable",): 0}


def test_a_hostile_name_is_a_label(make_run):
    """A run's name with quotes and line breaks adds no sample."""
    name = 'a"} 1\nfedadapt_evil 1\n# \\'
    with exposed(make_run(name), 0) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}") as answer:
        samples = [
            sample
            for family in parser.text_string_to_metric_families(answer.read().decode())
            for sample in family.samples
        ]
    assert {sample.labels["run"] for sample in samples if "run" in sample.labels} == {name}
    assert all(not sample.name.startswith("fedadapt_evil") for sample in samples)


def test_only_the_loopback_interface_is_asked(make_run):
    """What is exposed listens where this machine alone can reach it, and no more once the context is left."""
    with exposed(make_run(), 0) as port, socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))
    with exposed(make_run(), 0) as port, socket.socket() as probe:
        probe.bind(("127.0.0.2", port))
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))


def test_a_port_that_is_taken_is_one_line(make_run):
    """Another listener on the port ends in one line that says what to change."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="--metrics-port"),
        exposed(make_run(), taken.getsockname()[1]),
    ):
        pass
